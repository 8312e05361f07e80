-- What says until when the owner of a renewed key counts as alive: {line of the record, seconds and
-- microseconds of the clock, milliseconds for which the renewal lasts; under 0: there is none}.
-- KEYS: the record; what its owner renews.
local time = redis.call('TIME')
return {redis.call('LINDEX', KEYS[1], -1), time[1], time[2], redis.call('PTTL', KEYS[2])}
