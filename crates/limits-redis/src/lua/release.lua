-- KEYS: per request the endpoint. ARGV: per request wanted, more (1/0), interval and tolerance of the rate (interval
-- 0: none). Answers per request 0 (granted), count, microseconds to the next; 1 (probe), 1, 0; 2 (wait), 0, wait.
local answer = {}

local function decide(e, wanted, more, interval, tolerance)
  if e.p > now then return 2, 0, e.p - now end
  if e.s > 0 then
    if now >= e.u then
      e.s, e.u = 2, now + LEASE
      return 1, 1, 0
    end
    local wait = e.u - now
    if e.s == 2 then wait = math.min(wait, POLL) end
    return 2, 0, wait
  end
  local restarts = e.p > 0 and (wanted > RESTART or more)
  if restarts then wanted = math.min(wanted, RESTART) end
  if interval == 0 then return 0, wanted, restarts and RESTART_REST or 0 end
  local base = math.max(e.t, now)
  local free = math.floor(math.max(tolerance - (base - now), 0) / interval)
  local count = math.min(free, wanted)
  local tat = base + interval * count
  local after = math.max(tat + interval - now - tolerance, 0)
  if count == 0 then return 2, 0, after end
  e.t = tat
  return 0, count, after
end

for r = 0, #KEYS - 1 do
  local e = load(r + 1)
  local wanted, more = tonumber(ARGV[4 * r + 1]), ARGV[4 * r + 2] == '1'
  local had_backlog, had_tat, had_state, had_until = e.w, e.t, e.s, e.u
  local kind, count, wait = decide(e, wanted, more, tonumber(ARGV[4 * r + 3]), tonumber(ARGV[4 * r + 4]))
  if more or count < wanted then e.w = now + BACKLOG else e.w = 0 end
  if e.w ~= had_backlog or e.t ~= had_tat or e.s ~= had_state or e.u ~= had_until then change(r + 1) end
  answer[3 * r + 1] = kind
  answer[3 * r + 2] = count
  answer[3 * r + 3] = wait
end
save()
return answer
