-- The state of an endpoint, packed: t (TAT), p (pushed until, 0 once it works again), w (backlog until), and the breaker:
-- u (open or leased until), i (interval), s (0 closed, 1 open, 2 half-open), n (failures). The rules are those of the
-- Rust modules gcra, breaker and endpoint; times are microseconds, which a double holds exactly.
local PACKED = '<dddddBI4'
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])

-- All keys are read by one call, and what changed is written at the end: each call from a script has its price, and
-- neighbours in a batch are often of one endpoint.
local values = redis.call('MGET', unpack(KEYS))
local loaded, changed = {}, {}

local function load(index)
  local key, value = KEYS[index], values[index]
  local e = loaded[key]
  if e then return e end
  e = { t = 0, p = 0, w = 0, u = 0, i = 0, s = 0, n = 0 }
  if value then e.t, e.p, e.w, e.u, e.i, e.s, e.n = struct.unpack(PACKED, value) end
  loaded[key] = e
  return e
end

local function change(index)
  local key = KEYS[index]
  changed[key] = loaded[key]
end

local function save()
  for key, e in pairs(changed) do
    local last = math.max(e.t, e.w)
    if e.p > 0 then last = math.max(last, e.p + MEMORY) end
    if e.s > 0 then
      last = math.max(last, e.u + MEMORY)
    elseif e.n > 0 then
      last = math.max(last, now + MEMORY)
    end
    if last <= now then
      redis.call('DEL', key)
    else
      local packed = struct.pack(PACKED, e.t, e.p, e.w, e.u, e.i, e.s, e.n)
      redis.call('SET', key, packed, 'PX', math.ceil((last - now) / 1000))
    end
  end
end
