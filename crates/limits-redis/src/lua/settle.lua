-- KEYS: claims. ARGV: per claim the resource it was made for, and the TTL in ms of the finished claim, or 0 to give
-- it up.
for c = 0, #KEYS - 1 do
  local key, resource, ttl = KEYS[c + 1], ARGV[2 * c + 1], ARGV[2 * c + 2]
  local old = redis.call('GET', key)
  if old and string.sub(old, 1, 1) == 'p' and string.sub(old, 2, 17) == resource then
    if ttl == '0' then
      redis.call('DEL', key)
    else
      redis.call('SET', key, 'f' .. string.sub(old, 2, 49), 'PX', ttl)
    end
  end
end
return {}
