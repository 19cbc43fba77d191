-- KEYS: the version of an application. ARGV: the version, the channel, the application. Decimal texts are compared,
-- as a double does not hold every 64-bit number.
local old, new = redis.call('GET', KEYS[1]), ARGV[1]
if old and (#old > #new or (#old == #new and old >= new)) then
  return {}
end
redis.call('SET', KEYS[1], new, 'PX', VERSION_MS)
redis.call('PUBLISH', ARGV[2], ARGV[3])
return {}
