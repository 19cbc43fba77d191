-- KEYS: claims. ARGV: per claim how it starts while the resource that it was made for has not finished it (p and the
-- resource), and 1 to finish it, which leaves it its time, or 0 to give it up.
for c = 0, #KEYS - 1 do
  local key, pending = KEYS[c + 1], ARGV[2 * c + 1]
  if redis.call('GETRANGE', key, 0, 16) == pending then
    if ARGV[2 * c + 2] == '1' then
      redis.call('SETRANGE', key, 0, 'f')
    else
      redis.call('DEL', key)
    end
  end
end
return {}
