-- What the other scripts share: the indexes of a kind. They are, behind the kind's name:
--   |states      set of the state labels in use
--   |state:S     sorted set of ids by the moment since which they have the state label S
--   |client:C    the same by the client label C, but for records of the client itself
--   |expiry      sorted set of what an expired record leaves in the others, by the moment of
--                expiry: id, newline, client label, newline, state label
-- An id stands with the colon before it, so that kind .. id is the key.

-- The head of a stored record; nothing where it is none.
local function head(line)
  return string.match(line, '^(%d+ %S*) (%d+%.%d+) (%S*) (%S*)\n')
end

-- The client label under which an id is listed: a client's own record needs no such entry.
local function listed(id, client)
  if client == nil or id == ':' .. client then
    return ''
  end
  return client
end

local function expiring(id, client, state)
  return id .. '\n' .. client .. '\n' .. state
end

-- What is of another type holds no entry.
local function leave_state(kind, id, state)
  redis.pcall('ZREM', kind .. '|state:' .. state, id)
  if redis.call('EXISTS', kind .. '|state:' .. state) == 0 then
    redis.pcall('SREM', kind .. '|states', state)
  end
end

local function leave_client(kind, id, client)
  if client ~= '' then
    redis.pcall('ZREM', kind .. '|client:' .. client, id)
  end
end

-- Takes a record that had these labels out of all indexes.
local function forget(kind, id, client, state)
  leave_state(kind, id, state)
  leave_client(kind, id, client)
  redis.pcall('ZREM', kind .. '|expiry', expiring(id, client, state))
end

local function clock()
  local time = redis.call('TIME')
  return string.format('%d.%06d', time[1], time[2])
end

local function due(kind, now, limit)
  return redis.call('ZRANGEBYSCORE', kind .. '|expiry', '-inf', now, 'LIMIT', 0, limit)
end

-- Takes what expired records have left out of the indexes. Where a record lives under the key, by
-- another life or a longer one, what is its own stays.
local function purge(kind, now, entries)
  for _, entry in ipairs(entries) do
    local id, client, state = string.match(entry, '^(.*)\n(.*)\n(.*)$')
    local line = redis.pcall('LINDEX', kind .. id, -1)
    local _, _, is, owner = head(type(line) == 'string' and line or '')
    local mine, stays = listed(id, owner) == client, is == state
    local left = mine and stays and redis.call('PTTL', kind .. id) or -1
    if left > -1 then
      -- Not worth an error where a full server refuses it.
      redis.pcall('ZADD', kind .. '|expiry', string.format('%.3f', now + (left + 1) / 1000), entry)
    else
      redis.call('ZREM', kind .. '|expiry', entry)
      if not stays then
        leave_state(kind, id, state)
      end
      if not mine then
        leave_client(kind, id, client)
      end
    end
  end
end
