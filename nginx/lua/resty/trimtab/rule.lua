-- The per-request rule: which server has the least expected delay, and the
-- passive estimates of rate and error ratio behind it.
--
-- Pure: arrays in, a number out; no nginx, no clock, no random source.
-- python/trimtab/twin/rule.py is the same in Python, expression by
-- expression, and tests/data/golden/rule.json holds both to it.
--
-- Arrays are FFI double arrays, indexed from 0. `server` ones have an entry
-- per server address, over all upstreams:
--     in_flight[i]  n_i, requests in flight
--     work[i]       B_i, the sum of v_j * a_ij over them, in seconds
--     rate[i]       work per second of one busy slot; 1 is nominal
--     error[i]      EWMA of failures, 0 to 1
--     slots[i]      k_i; 0 is unknown
--     sharing[i]    not 0 where the server shares its slots among all that is
--                   in flight (processor sharing), in place of a queue
--     done[i], busy[i], last[i]   D, T and the instant of the last update
-- Those of an upstream (class j) have an entry per peer: server[p] is its
-- index in the arrays above, weight[p] is W_ij, affinity[p] a_ij, and skip[p]
-- is not 0 where the peer must not be picked.
--
-- Unknown slots. Busy time then counts every request in flight as a busy slot
-- (so the rate is 1 over the mean response time per second of work), and the
-- wait is that of one queue (k = 1): the score is (v + B) / rate, in words
-- response time x load, as nginx's least_time and peak-EWMA balancers have
-- it, with a load that knows the classes. It counts a queue twice, which only
-- makes it avoid queues more. Taking busy time as one slot instead would make
-- a server look faster the more it has in flight, and draw all to one server.
-- Slots that are given too low have that same effect.
--
-- Processor sharing. With n in flight on k cores, and one more, each gets
-- k / (n + 1) of a core: a request takes own * (n + 1) / k, that is (n + 1 -
-- k) / k times its own work more than alone, and slows the others down by as
-- much in all. What they have left hardly matters, its own work does: on such
-- a server a long request is what hurts. So both are counted, as SHARED_COST
-- times that, in the place of the wait. Simulated with three classes at 80%
-- load it has half the ART of the wait, and from 1.5 to 3 it is the same.
local exp = math.exp
local floor = math.floor
local huge = math.huge
local log = math.log
local max = math.max
local min = math.min

local _M = {}

-- An error costs as much as 20 services: at 5% errors a peer looks twice as
-- slow. Measured to keep a fast-failing server from attracting traffic.
local ERROR_COST = 20

-- One failure in twenty moves the ratio by 5%: about 20 tries of memory.
local ERROR_KEPT = 0.95

-- Rates are known to about 10%: where servers with free slots differ by less,
-- the emptier one is better. It keeps equal servers equal, and gives a new one
-- its first requests.
local SPREAD = 0.1

-- What sharing costs a request, and again what it costs the others.
local SHARED_COST = 2

-- Makes any difference of scores larger than 1 and than any index: 1e-300 s
-- is less than doubles of a microsecond can differ by.
local APART = 1e300
-- A server has room for a request or it has none: any number from 0 to 1.
local LEAST_ROOM = 1e-9

-- An idle server is believed for about this long before the prior takes
-- over, so that one that was slow is tried again.
local IDLE_TAU_SECONDS = 10

-- Weight of the prior rate, in jobs: two completions outvote it.
local PRIOR_JOBS = 2

-- Spread of the urgency index, in mean services. Smaller is nearer to the
-- order of deadlines, larger to shortest first. In the twin 0.25 to 8 are
-- equal where the short classes are the urgent ones; where a long class has
-- a deadline of few services (the demo), 3 has 1.7 times the tardiness of 0.5.
local LOOKAHEAD = 0.5

-- Requests beyond the slots where services are shorter than this: the next
-- one is handed over in about half a millisecond, 3% of such a service and
-- more. Longer ones lose less by it than by a request that is bound too
-- early (decision 6 has the figures).
local SHORT_SECONDS = 0.02
local SHORT_SLACK = 1

-- And where the slots are an estimate that is tried out.
local TRIAL_SLACK = 2


-- Expected delay in seconds, divided by weight, of a request of own work
-- `own` (v_j * a_ij, seconds at rate 1) at one server.
local function score(own, n, b, rate, error, k, sharing, weight)
    local wait = 0
    if sharing ~= 0 and k >= 1 then
        wait = SHARED_COST * own * max(0, n + 1 - k) / (k * rate)
    else
        k = max(k, 1)
        if n + 1 > k then
            wait = (n + 1 - k) / n * b / (k * rate)
        end
    end
    return (own / rate * (1 + ERROR_COST * error + SPREAD * n / k) + wait)
           / weight
end

_M.score = score


-- The peer of least score, from 0, or -1 when all are skipped. `service` is
-- v_j in seconds, `uniform` in [0, 1) decides between equal scores, `scores`
-- (an array of `count`) receives the score of every peer.
local function pick(count, server, weight, affinity, skip, service,
                    in_flight, work, rate, error, slots, sharing, uniform,
                    scores)
    local best = huge
    for p = 0, count - 1 do
        local s = huge
        if skip[p] == 0 then
            -- score(), written out: see the end of the function.
            local i = server[p]
            local n, k, r = in_flight[i], slots[i], rate[i]
            local own = service * affinity[p]
            local wait
            if sharing[i] ~= 0 and k >= 1 then
                wait = SHARED_COST * own * max(0, n + 1 - k) / (k * r)
            else
                k = max(k, 1)
                wait = max(0, n + 1 - k) / max(n, 1) * work[i] / (k * r)
            end
            s = (own / r
                 * (1 + ERROR_COST * error[i] + SPREAD * n / k) + wait)
                / weight[p]
        end
        scores[p] = s
        best = min(best, s)
    end
    if best == huge then
        return -1
    end
    local ties, first = 0, count
    for p = 0, count - 1 do
        local apart = (scores[p] - best) * APART
        ties = ties + max(0, 1 - apart)
        first = min(first, p + apart)
    end
    if ties < 2 then
        return first
    end
    local chosen = floor(uniform * ties)
    for p = first, count - 1 do
        if scores[p] == best then
            if chosen == 0 then
                return p
            end
            chosen = chosen - 1
        end
    end
    return first
end

_M.pick = pick

-- LuaJIT before August 2023 (Debian 12 has that of January) may overwrite a
-- live register where a side trace needs more stack than its parent. A trace
-- of the loop above has all registers in use, so nothing that it leads to may
-- need more: the loop calls nothing, and what calls pick() either is kept out
-- of traces by jit.off, as returning there would go on in a side trace, or is
-- a segment of its own (segment.lua), with whose end every trace ends.


-- Carries D and T of server i forward to `now`, with `n` in flight since the
-- last update. Busy time counts on while nothing completes, so a stalled
-- server looks slow at once. Returns the seconds that passed.
function _M.advance(i, now, n, slots, done, busy, last, tau)
    local dt = max(0, now - last[i])
    if dt > 0 then
        if n > 0 then
            local kept = exp(-dt / tau)
            done[i] = done[i] * kept
            local k = slots[i]
            busy[i] = busy[i] * kept + (k > 0 and min(n, k) or n) * dt
        else
            local kept = exp(-dt / IDLE_TAU_SECONDS)
            done[i] = done[i] * kept
            busy[i] = busy[i] * kept
        end
        last[i] = now
    end
    return dt
end


-- The rate of a server: `prior` (r0_i) as PRIOR_JOBS mean services, and what
-- was seen.
function _M.rate(done, busy, prior, mean_service)
    local a = PRIOR_JOBS * mean_service
    return (a + done) / (a / prior + busy)
end


-- The error ratio after one more try.
function _M.error_ratio(error, failed)
    return ERROR_KEPT * error + (1 - ERROR_KEPT) * (failed and 1 or 0)
end


-- The error ratio after `seconds` without a request: forgotten as the rate is,
-- or a server that has failed for a while would never be tried again.
function _M.forget(error, seconds)
    return error * exp(-seconds / IDLE_TAU_SECONDS)
end


-- Requests that a server may have in flight before others wait in nginx.
-- `slots` 0 is unknown: no limit. `is_exact`: not an estimate to be tried
-- out; one of too few slots would come true, as with the slots never more than
-- full nothing shows that there are others: see limits.lua.
-- `service` is the mean service time there in seconds. Where it is short the
-- time to hand over the next request counts, and one more queues there.
function _M.limit(slots, is_exact, service)
    if slots < 1 then
        return huge
    end
    if not is_exact then
        return slots + TRIAL_SLACK
    end
    return service < SHORT_SECONDS and slots + SHORT_SLACK or slots
end


-- What so many seconds to spare take from an urgency: 0 or less.
local function lateness(slack, mean_service)
    return -max(0, slack) / (LOOKAHEAD * mean_service)
end

_M.lateness = lateness


-- ATC index (apparent tardiness cost: Vepsalainen and Morton 1987) of a
-- waiting request: how urgent it is, larger is sooner. Times in seconds;
-- `arrival` and `now` on the same clock. Its logarithm, as the index itself is
-- 0 in doubles where a request can spare 370 mean services, and those that
-- can would have no order. It is constant once a request is too
-- late, so alone it would let a class of long services and far deadlines wait
-- for ever in overload: see room.lua.
function _M.urgency(now, arrival, deadline, service, mean_service)
    return lateness(arrival + deadline - service - now, mean_service)
           - log(deadline * service)
end


-- The peer that a waiting request claims, and whether it may go there now.
--
-- As pick(), with two differences: `in_flight` and `work` hold beside what is
-- in flight the claims of requests that are more urgent, and limit[i] is the
-- most that server i may have. Without room at the best peer the request
-- waits for it, though a slower one may be free: until it has waited as long
-- (`held`, seconds) as it would take there. As with skis that one rents until
-- the rent has reached their price, it then takes at most twice as long as
-- what it would have taken there at once, whatever the best peer does, and
-- a server that takes long is not given what another has soon room for.
-- Of several such peers it takes the best.
-- Returns the peer from 0, or -1 when all are skipped; true where it has room.
function _M.claim(count, server, weight, affinity, skip, service, in_flight,
                  work, rate, error, slots, sharing, limit, held, uniform,
                  scores)
    local p = pick(count, server, weight, affinity, skip, service, in_flight,
                   work, rate, error, slots, sharing, uniform, scores)
    if p < 0 then
        return p, false
    end
    local i = server[p]
    if in_flight[i] < limit[i] then
        return p, true
    end
    local best, found = held, -1
    for q = 0, count - 1 do
        i = server[q]
        -- Far more than held where it has no room.
        local s = scores[q]
                  + max(0, LEAST_ROOM - (limit[i] - in_flight[i])) * APART
        if s < best then
            best, found = s, q
        end
    end
    if found >= 0 then
        return found, true
    end
    return p, false
end


return _M
