-- Carries out what health.lua decides: ejects servers, lets single requests
-- try them, brings them back, and keeps skip[p] and weight[p] of every
-- upstream, which are all that the rule sees of it.
--
-- A server's health is shared by all workers, in the mapping; a stamp there
-- rises whenever a server goes or comes, and each worker then fills its arrays
-- anew. So a request costs three comparisons more, however many peers there
-- are. Two workers that judge the same server within nanoseconds may count
-- one ejection twice, or send two requests to try it: benign.
local counters = require("resty.trimtab.counters")
local health_of = require("resty.trimtab.health")
local limits = require("resty.trimtab.limits")
local libc = require("resty.trimtab.libc")
local rescue = require("resty.trimtab.rescue")

local CHECK = health_of.CHECK
local NOTICE = ngx.NOTICE
local STALL = health_of.STALL
local WARN = ngx.WARN
local clock = libc.monotonic
local fill_skip = health_of.fill_skip
local format = string.format
local get_method = ngx.req.get_method
local huge = math.huge
local in_flight_at = counters.in_flight_at
local ipairs = ipairs
local is_alone = health_of.is_alone
local is_exiting = ngx.worker.exiting
local is_half_open = health_of.is_half_open
local is_in_doubt = health_of.is_in_doubt
local is_stalled = health_of.is_stalled
local longest_of = rescue.longest
local max = math.max
local may_be_silent = rescue.may_be_silent
local min = math.min
local most_ejected = health_of.most_ejected
local ngx_log = ngx.log
local pairs = pairs
local patience = rescue.patience
local rescue_caught = rescue.sweep
local share = health_of.share
local stall_backoff = health_of.stall_backoff
local tonumber = tonumber

-- Weights of a slow start rise in steps of this length.
local STEP_SECONDS = 0.1
-- Peers that are to be tried are looked for this often: one that is being
-- tried stays due.
local PAUSE_SECONDS = 0.01
-- As nginx has it: what it does not try again elsewhere.
local NOT_IDEMPOTENT = { POST = true, LOCK = true, PATCH = true }
-- No rate is believed to be less, so that nothing is divided by zero.
local MIN_RATE = 1e-3

local _M = {}

local registry, map, head, healths
local seen_stamp, refresh_at = -1, huge


-- A number in [0, 1) for what need not be random, only differ.
local function fraction(now)
    return now * 1e6 % 1000 / 1000
end


local function changed()
    head.health_stamp = head.health_stamp + 1
end


-- Whether nginx would try this request on another peer when it fails here.
local function can_retry(upstream)
    return upstream.retry_non_idempotent or not NOT_IDEMPOTENT[get_method()]
end

_M.can_retry = can_retry


-- Brings a server back, with nothing held against it: what it did before says
-- little of it now, and as nobody goes where nobody has been answered well,
-- it would be long until the estimates knew.
local function restore(i, now)
    local health = healths[i]
    ngx_log(NOTICE, "trimtab: ", registry.address_of[i], " is back after ",
            format("%.1f s", now - tonumber(health.since)))
    health_of.restore(health, now)
    map.done[i], map.busy[i], map.error[i] = 0, 0, 0
    map.rate[i] = registry.prior[i]
    changed()
end


-- When a peer of an upstream is to be tried next.
local function next_probe(upstream)
    local at = huge
    for p = 0, upstream.count - 1 do
        local i = upstream.server[p]
        if is_in_doubt(healths[i], map.error[i]) then
            at = min(at, tonumber(healths[i].back))
        end
    end
    return at
end


-- Fills the arrays of an upstream. Returns the instant of the next step of a
-- slow start.
local function fill(upstream, now)
    local count, server = upstream.count, upstream.server
    local next_step = huge
    fill_skip(count, server, upstream.drain, healths,
              most_ejected(count, upstream.eject_max_ratio), upstream.skip)
    for p = 0, count - 1 do
        local health = healths[server[p]]
        if upstream.was_drained[p] > upstream.drain[p] then
            health.joined = now
        end
        upstream.was_drained[p] = upstream.drain[p]
        local part = share(health.joined, now, upstream.slow_start_seconds)
        upstream.weight[p] = upstream.learned_weight[p] * part
        if part < 1 then
            next_step = now + STEP_SECONDS
        end
    end
    return next_step
end


-- Brings back what a check of an earlier configuration has ejected, and this
-- one does not check: a worker of that one may have done so just now.
local function forget_checks(now)
    for _, i in ipairs(registry.servers) do
        if healths[i].reason == CHECK and not registry.checks[i] then
            restore(i, now)
        end
    end
end


-- Brings the arrays of all upstreams up to date.
local function refresh(now)
    seen_stamp = tonumber(head.health_stamp)
    refresh_at = huge
    if not is_exiting() then
        forget_checks(now)
    end
    for _, upstream in ipairs(registry.upstreams) do
        refresh_at = min(refresh_at, fill(upstream, now))
        upstream.probe_at = next_probe(upstream)
    end
    limits.refresh(registry)
    refresh_at = min(refresh_at, rescue_caught(now))
end

_M.refresh = refresh


-- Takes in what other workers have found. Called with each request.
local function follow(now)
    if head.health_stamp ~= seen_stamp or now >= refresh_at then
        refresh(now)
    end
end

_M.follow = follow


-- The least error ratio among the other peers of an upstream that are in.
local function best_error(upstream, i)
    local best = huge
    for p = 0, upstream.count - 1 do
        local s = upstream.server[p]
        if s ~= i and upstream.drain[p] == 0 and healths[s].reason == 0 then
            best = min(best, tonumber(map.error[s]))
        end
    end
    return best
end


-- Whether one more peer of the upstream may be left out.
local function has_room(upstream)
    local out = 0
    for p = 0, upstream.count - 1 do
        if healths[upstream.server[p]].reason > 0 then
            out = out + 1
        end
    end
    return out < most_ejected(upstream.count, upstream.eject_max_ratio)
end


local function eject(upstream, i, reason, now)
    local health = healths[i]
    local first = upstream.eject_seconds
    if reason == STALL then
        first = stall_backoff(health.asked, now, first)
    end
    health_of.eject(health, reason, now, first, upstream.eject_max_seconds,
                    fraction(now))
    changed()
    ngx_log(WARN, "trimtab: ejected ", registry.address_of[i], " (",
            health_of.NAMES[reason], ") ",
            reason == CHECK and "until a check succeeds"
            or format("for %.1f s", tonumber(health.backoff)))
end


-- A request is sent to server i.
function _M.began(i, now)
    local health = healths[i]
    if health.asked == 0 then
        health.asked = now
    end
end


-- A server whose error ratio costs it requests was tried now.
local function suspect(upstream, health, now)
    health.back = now + upstream.eject_seconds
    upstream.probe_at = min(upstream.probe_at, tonumber(health.back))
end


local function judge_failure(record, i, now, is_probe)
    local health, upstream = healths[i], record.upstream
    if health.reason == 0 then
        local best = best_error(upstream, i)
        local reason = health_of.failed(health, map.error[i], best,
                                        upstream.eject_failures,
                                        upstream.eject_error_ratio)
        -- Where too many are out already it takes the place of one whose
        -- failures are older, as long as another is in: else one that is dead
        -- would be used, and one left out that fell silent a minute ago.
        if reason and (has_room(upstream) or best < huge and most_ejected(
               upstream.count, upstream.eject_max_ratio) > 0)
        then
            return eject(upstream, i, reason, now)
        end
        suspect(upstream, health, now)
    elseif is_probe and health.reason ~= CHECK then
        health_of.extend(health, now, upstream.eject_max_seconds,
                         fraction(now))
        changed()
    end
end


-- A try of this record at server i ended: `outcome` as for counters.finish,
-- which is called before.
function _M.ended(record, i, now, outcome)
    local is_probe = record.is_probe
    if is_probe then
        record.is_probe = false
        counters.probe(i, -1)
    end
    if outcome == 0 then
        return
    end
    local health = healths[i]
    health.asked = 0
    if outcome < 0 then
        return judge_failure(record, i, now, is_probe)
    end
    health.pace = map.rate[i]
    health.streak = 0
    if health.reason > 0 then
        -- What a silent server still had is as good a sign as a new request,
        -- and so is what one got that is used as too many are ejected.
        follow(now)
        if health.reason ~= CHECK
           and (is_probe or health.reason == STALL
                or record.upstream.skip[record.position] == 0)
        then
            restore(i, now)
        end
    elseif is_in_doubt(health, map.error[i]) then
        if is_probe then
            map.error[i] = health_of.acquit(map.error[i])
        end
        suspect(record.upstream, health, now)
    end
end


-- The peer of an upstream that a request is to try, from 0, or nil: one that
-- is half open, and where a failure costs the client nothing.
function _M.probe(upstream, now)
    if now < upstream.probe_at or not can_retry(upstream) then
        return nil
    end
    upstream.probe_at = max(next_probe(upstream), now + PAUSE_SECONDS)
    for p = 0, upstream.count - 1 do
        local i = upstream.server[p]
        if upstream.drain[p] == 0
           and is_half_open(healths[i], map.error[i], now,
                            counters.probes_at(i), in_flight_at(i),
                            upstream.eject_max_seconds)
        then
            return p
        end
    end
end


-- Marks a try that has begun as one that probe() sent.
function _M.mark(record)
    record.is_probe = true
    counters.probe(record.server, 1)
    if healths[record.server].reason == STALL then
        -- If it is silent still, this one is not to wait for long.
        refresh_at = min(refresh_at, record.began + patience(record.upstream))
    end
end


-- Whether a server is not ejected.
function _M.is_in(i)
    return healths[i].reason == 0
end


-- The upstream whose settings are those for the stalls of server i.
local function watcher_of(i)
    for _, upstream in ipairs(registry.upstreams) do
        if upstream.eject_stall_seconds > 0 then
            for p = 0, upstream.count - 1 do
                if upstream.server[p] == i then
                    return upstream
                end
            end
        end
    end
end


-- The longest that an answer is known to take, of all classes that a server
-- has.
local function longest_at(i)
    local longest = 0
    for _, upstream in ipairs(registry.upstreams) do
        for p = 0, upstream.count - 1 do
            if upstream.server[p] == i then
                longest = max(longest, longest_of(upstream))
            end
        end
    end
    return longest
end


-- Looks for servers that have fallen silent. Called some times a second.
local function look(now)
    for i, upstream in pairs(registry.watchers) do
        local health = healths[i]
        -- A server that has never answered says nothing about its pace.
        if health.reason == 0 and health.asked > 0 and health.pace > 0
           and now - health.asked > upstream.eject_stall_seconds
           and is_stalled(health.asked, now, in_flight_at(i),
                          counters.work_at(i),
                          health.pace > MIN_RATE and health.pace or MIN_RATE,
                          longest_at(i), upstream.eject_stall_seconds)
           and is_alone(i, health.asked, now, upstream.count, upstream.server,
                        upstream.drain, healths)
           and has_room(upstream)
           and may_be_silent(i, in_flight_at(i))
        then
            eject(upstream, i, STALL, now)
        end
    end
end


-- A check of server i succeeded or failed for the last of so many times in a
-- row as it takes.
function _M.checked(upstream, i, is_up, now)
    local health = healths[i]
    if is_up and health.reason == CHECK then
        restore(i, now)
    elseif not is_up and health.reason ~= CHECK then
        eject(upstream, i, CHECK, now)
    end
end


-- Notes which servers this configuration has: those that the one before did
-- not have are new, and begin slowly. Master only (init_by_lua); `generation`
-- is that of this configuration, 1 the first.
function _M.configure(a_registry, generation)
    local now = clock()
    for _, i in ipairs(a_registry.servers) do
        local health = a_registry.map.health[i]
        if generation > 1 and health.configuration ~= generation - 1 then
            health_of.restore(health, now)
        end
        health.configuration = generation
    end
    a_registry.map.head.health_stamp = a_registry.map.head.health_stamp + 1
end


-- Judges for this registry.
function _M.open(a_registry)
    registry, map, head = a_registry, a_registry.map, a_registry.map.head
    healths = map.health
    seen_stamp = -1
    rescue.open(registry)
    registry.watchers = {}
    for _, i in ipairs(registry.servers) do
        registry.watchers[i] = watcher_of(i)
    end
    counters.on_touch(look)
end


return _M
