-- The state of an endpoint: a hash of t (TAT), p (pushed until, 0 once it works again), w (backlog until), and the
-- breaker: s (0 closed, 1 open, 2 half-open), u (open or leased until), i (interval), n (failures). The rules are those
-- of the Rust modules gcra, breaker and endpoint; times are microseconds, written with %.0f since %.14g would round them.
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

local function whole(number)
  return string.format('%.0f', number)
end

-- Neighbours in a batch are often of one endpoint: it is read once.
local loaded = {}

local function load(key)
  local known = loaded[key]
  if known then return known end
  local v = redis.call('HMGET', key, 't', 'p', 'w', 's', 'u', 'i', 'n')
  local function at(index) return tonumber(v[index] or 0) end
  local e = { t = at(1), p = at(2), w = at(3), s = at(4), u = at(5), i = at(6), n = at(7) }
  loaded[key] = e
  return e
end

local function save(key, e)
  local last = math.max(e.t, e.w)
  if e.p > 0 then last = math.max(last, e.p + MEMORY) end
  if e.s > 0 then
    last = math.max(last, e.u + MEMORY)
  elseif e.n > 0 then
    last = math.max(last, now + MEMORY)
  end
  if last <= now then
    redis.call('DEL', key)
    return
  end
  redis.call('HSET', key, 't', whole(e.t), 'p', whole(e.p), 'w', whole(e.w), 's', e.s, 'u', whole(e.u),
    'i', whole(e.i), 'n', e.n)
  redis.call('PEXPIRE', key, whole(math.ceil((last - now) / 1000)))
end
