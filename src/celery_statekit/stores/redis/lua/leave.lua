-- Ends a wait. Returns 1 where the lease was handed over meanwhile.
-- ARGV: owner, milliseconds, ticket.
redis.call('LREM', queue, 1, ARGV[3])
redis.call('DEL', KEYS[1] .. '|waits:' .. ARGV[3], KEYS[1] .. '|call:' .. ARGV[3])
if redis.call('GET', lease) == ARGV[1] then
  redis.call('SET', lease, ARGV[1], 'PX', ARGV[2])
  return 1
end
return 0
