-- KEYS: per request the endpoint and the done mark. ARGV: per request released (1/0), interval and tolerance of the
-- rate (interval 0: none). Answers per request a verdict and its value.
local answer = {}
for r = 0, #KEYS / 2 - 1 do
  local mark = values[2 * r + 2]
  local verdict, value = 0, 0
  if mark then
    verdict, value = 1, mark
  else
    local e = load(2 * r + 1)
    local released = ARGV[3 * r + 1] == '1'
    local interval, tolerance = tonumber(ARGV[3 * r + 2]), tonumber(ARGV[3 * r + 3])
    if not released and e.w > now then
      verdict = 4
    elseif not released and e.s > 0 then
      local wait = math.max(e.u - now, 0)
      if e.s == 2 then wait = math.min(wait, POLL) end
      verdict, value = 3, math.max(wait, WAIT_MIN)
    elseif e.p > now then
      verdict, value = 2, e.p - now
    elseif not released and interval > 0 then
      local after = math.max(e.t, now) + interval
      if after > now + tolerance then
        verdict, value = 2, after - now - tolerance
      else
        e.t = after
        change(2 * r + 1)
      end
    end
  end
  answer[2 * r + 1] = verdict
  answer[2 * r + 2] = value
end
save()
return answer
