-- What is in flight where, and what has happened: kept by each worker in a
-- row of the shared mapping, read over all rows.
--
-- A row has one writer, so its counters lose nothing; a sum over rows is
-- exact at rest and right to the last nanoseconds otherwise. Gauges (in
-- flight, work) are summed over the rows of living workers: see rows.lua.
--
-- Time integrals per server need the number in flight over all workers.
-- Whoever changes it adds the seconds since the last change, by anyone, to
-- its own row. Two workers that change the same server within nanoseconds
-- count the same seconds twice or not at all; statistics can bear that.
local mapping = require("resty.trimtab.mapping")
local rule = require("resty.trimtab.rule")

local advance = rule.advance
local error_ratio = rule.error_ratio
local floor = math.floor
local huge = math.huge
local forget = rule.forget
local log = math.log
local max = math.max
local min = math.min
local new = require("ffi").new
local rate_of = rule.rate
local sqrt = math.sqrt
local tonumber = tonumber

local LEVELS = 32
local BUCKETS = 36
-- The first bucket's bound; bounds grow by half an octave.
local BUCKET_SECONDS = 0.0005
local HALF_OCTAVE = 0.5 * log(2)
-- proto: a failed request counts as ten deadlines late.
local FAILED_TARDINESS = 9

local bounds = new("double[?]", BUCKETS)
for b = 0, BUCKETS - 1 do
    bounds[b] = BUCKET_SECONDS * 2 ^ floor(b / 2)
                * (b % 2 == 1 and sqrt(2) or 1)
end

-- The memory of the rate estimate in mean services (0.3 s at 10 ms, as
-- measured), within bounds that keep it from following single requests and
-- from sleeping through a slowdown.
local TAU_SERVICES = 30
local MIN_TAU_SECONDS = 0.1
local MAX_TAU_SECONDS = 10

-- Servers without events are carried on this often: so soon does a stalled
-- one look slow, and an idle one drift.
local TOUCH_SECONDS = 0.05

local _M = {}

-- The mapping, the worker's own row, and the rows of the living.
local map, head, own
local done, busy, last, rate, err
local live_in_flight, live_work, live_count = {}, {}, 0
local live_probes = {}
-- The first rows once more, by name, and zeros where there are not so many: a
-- loop over the rows would end the trace of whatever asks.
local NAMED = 4
local n_1, n_2, n_3, n_4
local w_1, w_2, w_3, w_4
local zeros
local seen_stamp = -1
-- What looks at the servers, and when it has.
local look
local looked_at = 0

-- From the registry: servers in use and their arrays.
local servers, slots, prior
local tau, mean_service = 0.3, 0.01


-- Counts in this row of the mapping, for this registry's servers.
function _M.open(shared, registry, row)
    map, head = shared, shared.head
    done, busy, last = map.done, map.busy, map.last
    rate, err = map.rate, map.error
    servers, slots, prior = registry.servers, registry.slots, registry.prior
    own, seen_stamp = row, -1
    zeros = new("double[?]", tonumber(head.address_capacity))
end


local function refresh_rows()
    seen_stamp = head.rows_stamp
    live_count = 0
    for i = 0, tonumber(head.rows) - 1 do
        if map.owners[i].pid ~= 0 then
            local row = mapping.row(map, i)
            live_count = live_count + 1
            live_in_flight[live_count] = row.in_flight
            live_work[live_count] = row.work
            live_probes[live_count] = row.probes
        end
    end
    local function named(live, r)
        return r <= live_count and live[r] or zeros
    end
    local n, w = live_in_flight, live_work
    n_1, n_2, n_3, n_4 = named(n, 1), named(n, 2), named(n, 3), named(n, 4)
    w_1, w_2, w_3, w_4 = named(w, 1), named(w, 2), named(w, 3), named(w, 4)
end


-- In flight at a server, over all workers.
local function in_flight_at(i)
    if head.rows_stamp ~= seen_stamp then
        refresh_rows()
    end
    local n = n_1[i] + n_2[i] + n_3[i] + n_4[i]
    if live_count > NAMED then
        for r = NAMED + 1, live_count do
            n = n + live_in_flight[r][i]
        end
    end
    return n
end


_M.in_flight_at = in_flight_at


local function sum_at(live, i)
    if head.rows_stamp ~= seen_stamp then
        refresh_rows()
    end
    local sum = 0
    for r = 1, live_count do
        sum = sum + live[r][i]
    end
    return sum
end


-- Work in flight at a server, in seconds, and requests that try whether it
-- is well again, over all workers.
function _M.work_at(i)
    return sum_at(live_work, i)
end


function _M.probes_at(i)
    return sum_at(live_probes, i)
end


-- +1 or -1 to the latter.
function _M.probe(i, change)
    own.probes[i] = own.probes[i] + change
end


-- Fills in_flight[i] and work[i] for the servers i of an upstream.
function _M.gather(count, server, in_flight, work)
    if head.rows_stamp ~= seen_stamp then
        refresh_rows()
    end
    for p = 0, count - 1 do
        local i = server[p]
        in_flight[i] = n_1[i] + n_2[i] + n_3[i] + n_4[i]
        work[i] = w_1[i] + w_2[i] + w_3[i] + w_4[i]
    end
    for r = NAMED + 1, live_count do
        local ns, ws = live_in_flight[r], live_work[r]
        for p = 0, count - 1 do
            local i = server[p]
            in_flight[i] = in_flight[i] + ns[i]
            work[i] = work[i] + ws[i]
        end
    end
end


-- Carries the estimates and integrals of a server to `now`; `n` has been in
-- flight since the last time.
local function carry(i, now, n)
    local dt = advance(i, now, n, slots, done, busy, last, tau)
    if n > 0 then
        local levels = own.levels[i]
        local level = min(n, LEVELS) - 1
        levels.seconds_at[level] = levels.seconds_at[level] + dt
    elseif err[i] > 0 then
        err[i] = forget(err[i], dt)
    end
end


local function rerate(i)
    rate[i] = rate_of(done[i], busy[i], prior[i], mean_service)
end


-- Sets the scale of the estimates from the mean service time; the same work
-- is `growth` times as many seconds as it was before.
function _M.tune(seconds, growth)
    mean_service = seconds
    tau = min(MAX_TAU_SECONDS, max(MIN_TAU_SECONDS, TAU_SERVICES * seconds))
    for s = 1, #servers do
        local i = servers[s]
        done[i] = done[i] * growth
        rerate(i)
    end
end


-- Carries on all servers that nobody has for TOUCH_SECONDS: the stalled and
-- the idle ones, which have no events of their own.
function _M.touch(now)
    if look and now - looked_at >= TOUCH_SECONDS then
        looked_at = now
        look(now)
    end
    if now - head.touched < TOUCH_SECONDS then
        return
    end
    head.touched = now
    for s = 1, #servers do
        local i = servers[s]
        if now - last[i] >= TOUCH_SECONDS then
            carry(i, now, in_flight_at(i))
            rerate(i)
        end
    end
end


-- Has touch() call a function with the time, in each worker each
-- TOUCH_SECONDS.
function _M.on_touch(callback)
    look, looked_at = callback, -huge
end


-- A try begins: `work` (v_j * a_ij, seconds) at server i, in pair q. Returns
-- whether it found a free slot (where slots are unknown: an idle server).
function _M.start(i, q, work, now)
    local n = in_flight_at(i)
    carry(i, now, n)
    rerate(i)
    own.in_flight[i] = own.in_flight[i] + 1
    own.work[i] = own.work[i] + work
    local pair = own.pairs[q]
    pair.in_flight_seconds = pair.in_flight_seconds
                             + pair.in_flight * max(0, now - pair.last)
    pair.in_flight = pair.in_flight + 1
    pair.last = now
    return n < max(1, slots[i])
end


-- A try ends. `outcome` is 1 for success, -1 for failure, 0 for neither (a
-- client that went away says nothing about the peer). `work` is what start()
-- counted, `worth` the same in the v_j of today.
function _M.finish(i, q, work, worth, now, outcome)
    local n = in_flight_at(i)
    carry(i, now, n)
    if outcome > 0 then
        done[i] = done[i] + worth
        local levels = own.levels[i]
        local level = min(max(n, 1), LEVELS) - 1
        levels.completions_at[level] = levels.completions_at[level] + 1
    end
    if outcome ~= 0 then
        err[i] = error_ratio(err[i], outcome < 0)
    end
    rerate(i)
    local rest = own.in_flight[i] - 1
    own.in_flight[i] = rest
    -- What rounding left goes when the server is idle.
    own.work[i] = rest > 0 and own.work[i] - work or 0
    local pair = own.pairs[q]
    pair.in_flight_seconds = pair.in_flight_seconds
                             + pair.in_flight * max(0, now - pair.last)
    pair.in_flight = pair.in_flight - 1
    pair.last = now
    if outcome < 0 then
        pair.failures = pair.failures + 1
    end
end


-- The same for a try that nginx's own balancer placed, known when it is over.
function _M.past_try(i, q, seconds, outcome)
    local pair = own.pairs[q]
    pair.in_flight_seconds = pair.in_flight_seconds + seconds
    if outcome ~= 0 then
        err[i] = error_ratio(err[i], outcome < 0)
    end
    if outcome < 0 then
        pair.failures = pair.failures + 1
    end
end


-- A try in pair q is not the first of its request.
function _M.retry(q)
    local pair = own.pairs[q]
    pair.retries = pair.retries + 1
end


-- A request ended in pair q that the retry budget did not let try again.
function _M.retry_refused(q)
    local pair = own.pairs[q]
    pair.retries_refused = pair.retries_refused + 1
end


function _M.unqueued(q, seconds)
    local pair = own.pairs[q]
    pair.unqueued = pair.unqueued + 1
    pair.unqueued_seconds = pair.unqueued_seconds + seconds
    pair.unqueued_squared = pair.unqueued_squared + seconds * seconds
end


-- The bucket of a response time: the first whose bound 0.0005 * 2^(b/2) is
-- not below it. The logarithm may be one off at a bound; the comparison is
-- what the bounds are defined by.
local function bucket_of(seconds)
    if seconds <= BUCKET_SECONDS then
        return 0
    end
    local b = floor(log(seconds / BUCKET_SECONDS) / HALF_OCTAVE)
    if b >= BUCKETS - 1 then
        return BUCKETS - 1
    end
    if seconds > bounds[b] then
        b = b + 1
    end
    return b
end

_M.bucket_of = bucket_of


-- A request is over, with pair q as its last try. `status` is 100 to 599;
-- `deadline` 0 when unknown.
function _M.request(q, status, seconds, in_bytes, out_bytes, deadline)
    local pair = own.pairs[q]
    pair.requests = pair.requests + 1
    local class = min(max(floor(status / 100), 1), 5) - 1
    pair.responses[class] = pair.responses[class] + 1
    pair.in_bytes = pair.in_bytes + in_bytes
    pair.out_bytes = pair.out_bytes + out_bytes
    pair.response_time_seconds = pair.response_time_seconds + seconds
    pair.response_time_squared = pair.response_time_squared
                                 + seconds * seconds
    local bucket = bucket_of(seconds)
    pair.buckets[bucket] = pair.buckets[bucket] + 1
    local late = deadline > 0 and max(0, (seconds - deadline) / deadline) or 0
    if status >= 500 then
        late = max(late, FAILED_TARDINESS)
    end
    if late > 0 then
        pair.tardiness = pair.tardiness + late
        pair.tardy = pair.tardy + 1
    end
end


-- Counters of a class: +1 or -1 to its gauge in flight (only where nginx's
-- own balancer picks), +1 to requests that it placed, and to tries at
-- addresses that the configuration does not name.
function _M.class_in_flight(u, change)
    local class = own.classes[u]
    class.in_flight = class.in_flight + change
end


function _M.class_unplaced(u)
    local class = own.classes[u]
    class.unplaced = class.unplaced + 1
end


function _M.class_unknown(u)
    local class = own.classes[u]
    class.unknown = class.unknown + 1
end


return _M
