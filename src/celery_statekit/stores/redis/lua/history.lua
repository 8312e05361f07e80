-- At most `limit` changes over a number; -1 where one is none. Each begins with its number.
local key, after, limit = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2])
local low, high = 0, redis.call('LLEN', key) - 1
local stop = high
while low < high do
  local middle = math.floor((low + high) / 2)
  local number = string.match(redis.call('LINDEX', key, middle), '^(%d+) ')
  if not number then
    return -1
  elseif tonumber(number) > after then
    high = middle
  else
    low = middle + 1
  end
end
stop = math.min(stop, low + limit)
if stop <= low then
  return {}
end
return redis.call('LRANGE', key, low, stop - 1)
