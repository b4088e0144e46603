-- SPDX-License-Identifier: Apache-2.0
-- wrk: each connection asks at random times, MEAN_MS apart on average (exponentially), so that
-- requests come as from many clients that know nothing of each other. Ends with a line of JSON.
local mean = tonumber(os.getenv("MEAN_MS"))

function init()
  math.randomseed(os.time())
end

function delay()
  return math.floor(-mean * math.log(1 - math.random()) + 0.5)
end

function done(summary, latency)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format('{"p50_s": %g, "p99_s": %g, "n": %d, "failed": %d}\n',
    latency:percentile(50) / 1e6, latency:percentile(99) / 1e6, summary.requests, failed))
end
