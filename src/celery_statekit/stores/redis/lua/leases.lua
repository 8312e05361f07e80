-- What the scripts of leases share. A lease is, behind its key's name:
--   |lease       who holds it, until it expires
--   |queue       list of the tickets of those who wait, in the order in which they came
--   |waits:T     whose ticket T is; it expires unless the one who waits says that he does
--   |call:T      list that the one with ticket T waits for
local lease, queue = KEYS[1] .. '|lease', KEYS[1] .. '|queue'

-- Gives a free lease to the first who still waits, for as long as he may take to wake up.
local function hand_over(alive)
  while true do
    local ticket = redis.call('LPOP', queue)
    if not ticket then
      return
    end
    local owner = redis.call('GET', KEYS[1] .. '|waits:' .. ticket)
    if owner then
      redis.call('SET', lease, owner, 'PX', alive)
      redis.call('RPUSH', KEYS[1] .. '|call:' .. ticket, '')
      redis.call('PEXPIRE', KEYS[1] .. '|call:' .. ticket, alive)
      redis.call('DEL', KEYS[1] .. '|waits:' .. ticket)
      return
    end
  end
end
