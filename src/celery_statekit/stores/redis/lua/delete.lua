-- Removes a key, whatever it holds. Returns how many there were.
local key, length = KEYS[1], tonumber(ARGV[1])
local kind, id = string.sub(key, 1, length), string.sub(key, length + 1)
local old = redis.pcall('LINDEX', key, -1)
local _, _, state, client = head(type(old) == 'string' and old or '')
local deleted = redis.call('DEL', key)
if deleted == 1 then
  -- What a damaged record leaves in the indexes goes when a listing meets it.
  if state then
    forget(kind, id, listed(id, client), state)
  end
  redis.pcall('PUBLISH', key .. ARGV[2], '')
end
return deleted
