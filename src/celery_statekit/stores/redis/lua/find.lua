-- One page of a listing: {next moment, next key, key, since, line, key, since, line ...}; the next
-- ones are empty at the end. Nothing where more are due than it removes.
-- It pages by position in the sorted sets, so that a page costs the same however many there are,
-- and checks each entry by its record: eviction takes records and leaves entries.
local kind, now = KEYS[1], clock()
-- A filter is empty, or an equals sign before its label.
local by_state, state = ARGV[1] ~= '', string.sub(ARGV[1], 2)
local by_client, client = ARGV[2] ~= '', string.sub(ARGV[2], 2)
local older, newest = tonumber(ARGV[3]), ARGV[4] ~= ''
local after, after_key, wants = ARGV[5], ARGV[6], tonumber(ARGV[7])
-- Entries to look at: more than are wanted where a second filter will refuse some.
local limit = wants
if by_client and (by_state or client == '') then
  limit = math.max(wants, 200)
end

local entries = due(kind, now, 500)
purge(kind, now, entries)
if #entries == 500 then
  return false
end

-- In order of bytes; Lua compares text by the server's locale.
local function below(a, b)
  for at = 1, math.min(#a, #b) do
    local left, right = string.byte(a, at), string.byte(b, at)
    if left ~= right then
      return left < right
    end
  end
  return #a < #b
end

local function precedes(a, b)
  if newest then
    a, b = b, a
  end
  if a.score ~= b.score then
    return a.score < b.score
  end
  return below(a.key, b.key)
end

local place = after ~= '' and {score = tonumber(after), key = after_key}
-- As text: Lua prints a number with 14 digits only.
local youngest = older > 0 and now - older or nil

local function wanted(entry)
  return (not place or precedes(place, entry)) and (not youngest or entry.score <= youngest)
end

-- Where entries that may be wanted begin.
local function start(name)
  if not newest then
    return place and redis.call('ZCOUNT', name, '-inf', '(' .. after) or 0
  end
  local bound = place and after
  if youngest and not (place and place.score <= youngest) then
    bound = string.format('%.17g', youngest)
  end
  return bound and redis.call('ZCOUNT', name, '(' .. bound, '+inf') or 0
end

-- What follows the bound is left for the next page: a sorted set may have more before it.
local page, whole, bound = {}, true, nil

local function collect(name, label)
  local from, found = start(name), 0
  while found < limit do
    local got = redis.call(newest and 'ZREVRANGE' or 'ZRANGE', name, from, from + limit - 1, 'WITHSCORES')
    for at = 1, #got, 2 do
      local entry = {
        key = kind .. got[at], score = tonumber(got[at + 1]), since = got[at + 1], id = got[at],
        label = label,
      }
      if wanted(entry) then
        page[#page + 1] = entry
        found = found + 1
      elseif youngest and not newest and entry.score > youngest then
        return
      end
    end
    if #got < 2 * limit then
      return
    end
    from = from + limit
  end
  whole = false
  if not bound or precedes(page[#page], bound) then
    bound = page[#page]
  end
end

if by_client and client ~= '' then
  collect(kind .. '|client:' .. client)
  local key = kind .. ':' .. client
  local line = redis.pcall('LINDEX', key, -1)
  local there, since, _, owner = head(type(line) == 'string' and line or '')
  if there and owner == client then
    local entry = {key = key, score = tonumber(since), since = since}
    if wanted(entry) then
      page[#page + 1] = entry
    end
  end
elseif by_state then
  collect(kind .. '|state:' .. state, state)
else
  for _, each in ipairs(redis.call('SMEMBERS', kind .. '|states')) do
    collect(kind .. '|state:' .. each, each)
  end
end
table.sort(page, precedes)

local found, bytes, last = {'', ''}, 0, nil
for _, entry in ipairs(page) do
  if #found > 3 * wants or bytes > 4194304 or bound and precedes(bound, entry) then
    whole = false
    break
  end
  last = entry
  local line = redis.pcall('LINDEX', entry.key, -1)
  local text = type(line) == 'string'
  local there, _, is, owner = head(text and line or '')
  local stale = line == false or there and (
    entry.label and is ~= entry.label or not entry.label and owner ~= client)
  if stale then
    if entry.label then
      leave_state(kind, entry.id, entry.label)
    elseif entry.id then
      leave_client(kind, entry.id, client)
    end
  elseif not there or (not by_state or is == state) and (not by_client or owner == client) then
    found[#found + 1] = entry.key
    found[#found + 1] = entry.since
    found[#found + 1] = text and line or ''
    bytes = bytes + (text and #line or 0)
  end
end
if last and not whole then
  found[1], found[2] = last.since, last.key
end
return found
