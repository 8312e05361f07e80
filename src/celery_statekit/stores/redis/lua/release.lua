-- Gives a lease back, to the first who waits for it. ARGV: owner, milliseconds as for acquire.
if redis.call('GET', lease) == ARGV[1] then
  redis.call('DEL', lease)
  hand_over(ARGV[2])
end
return 1
