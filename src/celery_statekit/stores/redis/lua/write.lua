-- Writes a record if the expected version is there. KEYS: the record; the value beside it, if any.
-- The key holds a list: the changes, oldest first, and the record last. One key, so that they
-- live, expire and are evicted together.
-- Returns 1: written, 0: another version is there, -1: what is there is no record.
-- ARGV: the head, the text, the changes; the value beside stands last.
local key = KEYS[1]
local expect, version, state, client, ttl, value_ttl, kept, length, database = string.match(
  ARGV[1], '^([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)|([^|]*)$')
local value = KEYS[2] and table.remove(ARGV)
-- The record takes the place behind the changes, as in the list.
local first, last = 3, #ARGV + 1

local old = redis.call('LINDEX', key, -1)
local there, since, before, owner
if old then
  there, since, before, owner = head(old)
  if not there then
    return -1
  end
end
if (there or '') ~= expect then
  return 0
end

kept = tonumber(kept)
local now = clock()
local kind, id = string.sub(key, 1, length), string.sub(key, length + 1)
local is, was = listed(id, client), listed(id, owner)
local moved = before ~= state
if moved then
  since = now
end

-- The record is what counts: an index that is none shows when it is read, and refuses no write.
-- A full server refuses the first command that needs room, and none after a write
-- (Redis 6.2 scripting.c lua_oom, 7.0 script.c scriptVerifyOOM): the first write is one that does.
if KEYS[2] then
  if value_ttl == '' then
    redis.call('SET', KEYS[2], value)
  else
    redis.call('SET', KEYS[2], value, 'PX', value_ttl)
  end
  redis.pcall('PUBLISH', KEYS[2], value)
end

if ttl == '0' then
  if old then
    redis.call('DEL', key)
    forget(kind, id, was, before)
  end
else
  ARGV[last] = version .. ' ' .. since .. ' ' .. state .. ' ' .. client .. '\n' .. ARGV[2]
  if old then
    redis.call('LSET', key, -1, ARGV[first])
    first = first + 1
  end
  for from = first, last, 1000 do
    local size = redis.call('RPUSH', key, unpack(ARGV, from, math.min(from + 999, last)))
    if size > kept + 1 then
      redis.call('LTRIM', key, -kept - 1, -1)
    end
  end

  local relisted = moved or is ~= was
  if ttl ~= '' then
    redis.call('PEXPIRE', key, ttl)
    local moment = string.format('%.3f', now + ttl / 1000)
    redis.pcall('ZADD', kind .. '|expiry', moment, expiring(id, is, state))
  end
  if old and (ttl ~= '' and relisted or ttl == '' and redis.call('PERSIST', key) == 1) then
    redis.pcall('ZREM', kind .. '|expiry', expiring(id, was, before))
  end
  if moved then
    if old then
      leave_state(kind, id, before)
    end
    redis.pcall('SADD', kind .. '|states', state)
    redis.pcall('ZADD', kind .. '|state:' .. state, since, id)
  end
  if is ~= was then
    leave_client(kind, id, was)
  end
  if is ~= '' and relisted then
    redis.pcall('ZADD', kind .. '|client:' .. is, since, id)
  end
end

-- A hint may fail: what is written is written.
redis.pcall('PUBLISH', key .. database, '')
-- Now and then is enough: listings look for themselves.
if ttl ~= '' and string.find(now, '[05]$') then
  local there, entries = pcall(due, kind, now, 20)
  purge(kind, now, there and entries or {})
end
return 1
