-- How many records of a kind have each state label; nothing where more are due than it removes.
local kind, now = KEYS[1], clock()
local entries = due(kind, now, 500)
purge(kind, now, entries)
if #entries == 500 then
  return false
end
local counts = {}
for _, state in ipairs(redis.call('SMEMBERS', kind .. '|states')) do
  local count = redis.call('ZCARD', kind .. '|state:' .. state)
  if count > 0 then
    counts[#counts + 1] = state
    counts[#counts + 1] = count
  else
    -- An eviction has taken its entries.
    redis.call('SREM', kind .. '|states', state)
  end
end
return counts
