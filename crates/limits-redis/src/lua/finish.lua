-- KEYS: per report the endpoint. ARGV: per report whether it is a probe (1/0), the signal, the pause. Answers per report
-- 0, -1 (closed) or the microseconds it opened for.
local answer = {}

local function open(e, interval)
  e.i = math.min(interval, OPEN_MAX)
  e.s, e.u, e.n = 1, now + e.i, 0
  return e.i
end

local function failure(e, probe)
  if e.s == 0 then
    if e.n + 1 >= FAILURES then return open(e, OPEN), true end
    e.n = e.n + 1
    return 0, true
  end
  if e.s == 2 and probe then return open(e, e.i * 2), true end
  return 0, false
end

for r = 0, #KEYS - 1 do
  local probe, signal, pause = ARGV[3 * r + 1] == '1', ARGV[3 * r + 2], tonumber(ARGV[3 * r + 3])
  local e, opened, dirty = load(r + 1), 0, false
  if pause > 0 and now + pause > e.p then
    e.p = now + pause
    dirty = true
  end
  if signal == 's' then
    if e.s > 0 then opened = -1 end
    local restarted = e.p > 0 and e.p <= now
    if restarted then e.p = 0 end
    dirty = dirty or restarted or e.s > 0 or e.n > 0
    e.s, e.u, e.i, e.n = 0, 0, 0, 0
  elseif signal == 'f' then
    local moved
    opened, moved = failure(e, probe)
    dirty = dirty or moved
  else
    if signal == 'b' then
      e.w = now + BACKLOG
      dirty = true
    end
    if probe and e.s == 2 then
      e.s, e.u = 1, now
      dirty = true
    end
  end
  if dirty then change(r + 1) end
  answer[r + 1] = opened
end
save()
return answer
