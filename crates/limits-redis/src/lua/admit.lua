-- KEYS: per request the version, the quota and its claims. ARGV: per request the cost of its messages in
-- microseconds (0: no quota), the tolerance, the number of claims; then per claim resource (16 bytes), fingerprint
-- (32 bytes), TTL, and what is left of it when another may take the claim over, in ms. A claim is kept as state (p
-- pending, f finished), resource, fingerprint, and that rest. Answers per request the version or '', the wait for the
-- quota, and a text per claim: c (claimed), t and resource (taken over), h, 0 or 1 (finished), resource, fingerprint
-- (held), s (skipped).
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local answer = {}
local k, a = 1, 1
-- Neighbours in a batch are often of one application: its version is read once.
local versions = {}

local function look(key, old, resource, print)
  local state, owner, same = string.sub(old, 1, 1), string.sub(old, 2, 17), string.sub(old, 18, 49) == print
  if state == 'p' and same then
    if owner == resource then return 'c' end
    if redis.call('PTTL', key) <= tonumber(string.sub(old, 50)) then return 't' .. owner end
  end
  return 'h' .. (state == 'p' and '0' or '1') .. string.sub(old, 2, 49)
end

-- What becomes of a request's claims, as far as its quota allows: each one's answer, whether none is held, and whether an
-- earlier request took from the quota for the same.
local function look_all(keys, args, claims)
  local looked, own, free, paid = {}, {}, true, false
  for c = 0, claims - 1 do
    local key, resource, print = KEYS[keys + c], ARGV[args + 4 * c], ARGV[args + 4 * c + 1]
    local old, found = redis.call('GET', key), 'c'
    if own[key] then
      found = 'h0' .. own[key]
    elseif old then
      found = look(key, old, resource, print)
      paid = true
    end
    own[key] = own[key] or resource .. print
    if string.sub(found, 1, 1) == 'h' then free = false end
    looked[c] = found
  end
  return looked, free, paid
end

while k <= #KEYS do
  local quota = KEYS[k + 1]
  local cost, tolerance, claims = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
  local version = versions[KEYS[k]] or redis.call('GETEX', KEYS[k], 'PX', VERSION_MS) or ''
  versions[KEYS[k]] = version
  table.insert(answer, version)
  k, a = k + 2, a + 3
  local looked, made, paid = look_all(k, a, claims)
  local tat, wait = 0, 0
  if made and not paid and cost > 0 then
    tat = math.max(tonumber(redis.call('GET', quota) or 0), now) + cost
    wait = math.max(tat - now - tolerance, 0)
    made = wait == 0
  end
  table.insert(answer, wait)
  for c = 0, claims - 1 do
    local found = looked[c]
    local kind = string.sub(found, 1, 1)
    if not made and kind ~= 'h' then found = 's' end
    if made then
      local resource = kind == 't' and string.sub(found, 2) or ARGV[a + 4 * c]
      local claim = 'p' .. resource .. ARGV[a + 4 * c + 1] .. ARGV[a + 4 * c + 3]
      redis.call('SET', KEYS[k + c], claim, 'PX', ARGV[a + 4 * c + 2])
    end
    table.insert(answer, found)
  end
  if made and tat > 0 then
    redis.call('SET', quota, string.format('%.0f', tat), 'PX', string.format('%.0f', math.ceil((tat - now) / 1000)))
  end
  k, a = k + claims, a + 4 * claims
end
return answer
