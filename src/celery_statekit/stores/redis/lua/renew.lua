-- Makes each of KEYS last: one for each key of a record and each owner who works on it.
-- ARGV: milliseconds.
local ms = ARGV[1]
for _, name in ipairs(KEYS) do
  if ms == '0' then
    redis.call('DEL', name)
  else
    redis.call('SET', name, '', 'PX', ms)
  end
end
return #KEYS
