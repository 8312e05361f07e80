-- Takes, renews or waits for a lease. Returns 1: it is held, 0: it is not.
-- ARGV: owner, milliseconds, ticket ('' : does not wait), milliseconds without a word after which
-- one who waits counts as dead.
local owner, ms, ticket, alive = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if not redis.call('GET', lease) then
  hand_over(alive)
end
local holder = redis.call('GET', lease)
if not holder or holder == owner then
  redis.call('SET', lease, owner, 'PX', ms)
  return 1
end
if ticket ~= '' then
  local waits = KEYS[1] .. '|waits:' .. ticket
  if redis.call('EXISTS', waits) == 0 then
    redis.call('RPUSH', queue, ticket)
  end
  redis.call('SET', waits, owner, 'PX', alive)
  redis.call('PEXPIRE', queue, 60000)
end
return 0
