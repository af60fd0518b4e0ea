-- Late binding: holds a request in the access phase until a server has room
-- for it, and gives each slot that becomes free to the request that should
-- have it. room.lua decides which; this file does it.
--
-- A request is counted at its server as soon as it is bound, so that nobody
-- else takes the slot, and its balancer phase only says where to.
--
-- Bounds. A room holds at most max_waiting requests of a class over all
-- workers, each for at most max_wait_seconds; what is beyond, or would be by
-- the pace at which its class is served, is refused with 503 and Retry-After.
local base = require("resty.core.base")
local claims = require("resty.trimtab.claims")
local counters = require("resty.trimtab.counters")
local dispatch = require("resty.trimtab.dispatch")
local ejection = require("resty.trimtab.ejection")
local libc = require("resty.trimtab.libc")
local new = require("ffi").new
local pace = require("resty.trimtab.pace")
local passes = require("resty.trimtab.passes")
local requests = require("resty.trimtab.requests")
local room_module = require("resty.trimtab.room")
local rule = require("resty.trimtab.rule")
local segment = require("resty.trimtab.segment")
local semaphores = require("ngx.semaphore")
local stack = require("resty.trimtab.stack")
local wake = require("resty.trimtab.wake")
local weights = require("resty.trimtab.weights")

local LOOK_SERVICES = room_module.LOOK_SERVICES
local begin_try = dispatch.begin_try
local clock = libc.monotonic
local drain_room = room_module.drain
local enter = passes.enter
local follow = weights.follow
local free_slow = passes.free_slow
local gather = counters.gather
local get_request = base.get_request
local in_flight_at = counters.in_flight_at
local is_alone = claims.is_alone
local max = math.max
local min = math.min
local off = require("jit").off
local mark_probe = ejection.mark
local others_wait = claims.others_wait
local pick = rule.pick
local probe = ejection.probe
local push = room_module.push
local remove = room_module.remove
local reserve = stack.reserve
local serve = passes.serve
local tonumber = tonumber
local touch = counters.touch
local uniform = dispatch.uniform

-- nginx's timers have milliseconds; less would only spin.
local MIN_WAIT_SECONDS = 0.001
-- A poke that nobody uses ends after so many workers.
local MAX_HOPS = 16

local _M = {}

local registry, dict, map
local room
-- The servers as room.drain sees them.
local view
-- Indexes of all servers, from 0.
local all, all_count
-- The waiter that runs the present drain itself, and when it runs.
local self, drain_now


-- Holds for this registry.
function _M.open(a_registry, a_dict, row)
    registry, dict, map = a_registry, a_dict, a_registry.map
    claims.open(map, row)
    room = room_module.new()
    local most = 0
    for _, upstream in ipairs(registry.upstreams) do
        room_module.add_class(room, upstream)
        pace.open(upstream)
        most = max(most, upstream.count)
    end
    all_count = #registry.servers
    all = new("int[?]", all_count)
    for s = 1, all_count do
        all[s - 1] = registry.servers[s]
    end
    local capacity = tonumber(map.head.address_capacity)
    view = {
        in_flight = new("double[?]", capacity),
        work = new("double[?]", capacity),
        rate = map.rate,
        error = map.error,
        slots = registry.slots,
        sharing = registry.sharing,
        limit = registry.limit,
        scores = new("double[?]", most),
        mean_service = 0,
        uniform = 0,
        free = 0,
        is_alone = true,
    }
    self = nil
end


-- How many wait in this worker.
function _M.count()
    return room.waiting
end


-- A request leaves the room, bound or not.
local function left(waiter, upstream)
    claims.retract(waiter)
    claims.class_waiting(upstream.index, -1)
    claims.publish(room.waiting)
end


-- Binds a waiter, already removed from the room, to peer p.
local function bind(waiter, p)
    local upstream = waiter.upstream
    left(waiter, upstream)
    pace.bound(upstream, drain_now)
    begin_try(waiter, p, view.scores, drain_now)
    waiter.is_bound = true
    if waiter ~= self then
        waiter.semaphore:post(1)
    end
end


-- Whether server i has room at this very moment.
local function is_free(i)
    return in_flight_at(i) < registry.limit[i]
end


-- look[view]: looks at all servers. Returns whether any has room.
local look = segment(function()
    gather(all_count, all, view.in_flight, view.work)
    local free = 0
    for s = 0, all_count - 1 do
        local i = all[s]
        free = free + max(0, registry.limit[i] - view.in_flight[i])
    end
    view.free = free
    view.mean_service = tonumber(map.head.mean_service)
    view.uniform = uniform()
    view.is_alone = is_alone()
    return free > 0
end)


-- Binds what can be bound.
local function drain(now, waiter)
    -- Who has waited may have lost stack to the garbage collector since.
    reserve()
    if not look[view] then
        return
    end
    self, drain_now = waiter, now
    if view.is_alone then
        drain_room(room, view, now, bind)
    else
        claims.begin_walk(now, view.mean_service)
        drain_room(room, view, now, bind, claims.see, claims.claimed, is_free)
    end
    self = nil
end


-- Servers that have a request less than when serve() was called last.
local freed, freed_count, freed_at = {}, 0, 0


-- Server i has one request less. Called wherever a try ends, within a segment
-- mostly: the phase calls serve() when that is over.
function _M.freed(i, now)
    if room.waiting > 0 or others_wait() then
        freed_count = freed_count + 1
        freed[freed_count] = i
        freed_at = now
        _M.is_due = true
    end
end


-- poke[i]: wakes the worker whose most urgent request waits for server i.
local poke = segment(function(_, i)
    if others_wait() and is_free(i) then
        local port = claims.port_for(i, freed_at,
                                     tonumber(map.head.mean_service))
        wake.poke(port, i, min(claims.others() - 1, MAX_HOPS))
    end
end)


-- Whether serve() is to be called.
_M.is_due = false


-- Slots that have become free go to who waits for them, here or in another
-- worker.
function _M.serve()
    _M.is_due = false
    if room.waiting > 0 then
        drain(freed_at)
    end
    for f = 1, freed_count do
        local _ = poke[freed[f]]
    end
    freed_count = 0
end


-- recall[view]: brings the state of the servers up to date; returns the time.
local recall = segment(function()
    local now = clock()
    follow(registry, dict, now)
    touch(now)
    return now
end)


-- How many workers more the poke under way may wake.
local hops_left = 0

-- pass_on[i]: wakes the next worker where server i still has room.
local pass_on = segment(function(_, i)
    if i < map.head.addresses and others_wait() and is_free(i) then
        wake.poke(claims.next_port(), i, hops_left - 1)
    end
end)


-- Looks at the room, if anyone waits. Where a poke says that server i has
-- room and nobody here takes it, those of the next worker may. Slow readers
-- are looked for first.
local function recheck(i, hops)
    free_slow()
    if room.waiting > 0 then
        drain(recall[view])
    end
    if i and hops > 0 then
        hops_left = hops
        local _ = pass_on[i]
    end
end


-- Listens to pokes from now on.
function _M.listen(pid)
    return wake.listen(map, pid, recheck, function()
        return room.waiting == 0
    end, requests.are_none)
end


-- A request that ends while it waits leaves the room.
function _M.vacate(waiter)
    local upstream = waiter.upstream
    remove(room, waiter)
    left(waiter, upstream)
end


-- time[record]: now.
local time = segment(function()
    local now = clock()
    return now
end)


-- Waits until bound, from now on. Returns false when it took too long.
local function wait(record, upstream, now)
    -- Where no server has room there is none to go to by having waited: what
    -- frees a slot looks at the room, and so does each 50 ms.
    local look_at = view.free > 0
                    and record.arrival + LOOK_SERVICES * upstream.service
                    or now
    local last = record.arrival + upstream.max_wait_seconds
    local semaphore = record.semaphore
    while true do
        local till = now < look_at and min(look_at, last) or last
        local posted = semaphore:wait(max(till - now, MIN_WAIT_SECONDS))
        if record.is_bound then
            if not posted then
                -- Bound as the time ran out: take the post that is due.
                semaphore:wait(0)
            end
            return true
        end
        now = time[record]
        if not posted then
            drain(now, record)
            if record.is_bound then
                return true
            end
            if now >= last then
                _M.vacate(record)
                return false
            end
        end
    end
end


-- The request that is being admitted, and when it came.
local admitted, admitted_at


-- picked[upstream]: the peer of least score. See dispatch.lua.
local picked = segment(function(_, upstream)
    local p = pick(upstream.count, upstream.server, upstream.weight,
                   upstream.affinity, upstream.skip, upstream.service,
                   view.in_flight, view.work, map.rate, map.error,
                   registry.slots, registry.sharing, uniform(), view.scores)
    return p
end)


-- join[record]: lets a request wait that has just come. Returns what it would
-- have to wait where that is known, else 0.
local join = segment(function(_, record)
    local upstream = record.upstream
    local expected = pace.foretold(upstream, record.arrival)
    push(room, upstream, record)
    claims.class_waiting(upstream.index, 1)
    claims.publish(room.waiting)
    return expected
end)


-- is_full[upstream]: whether more wait of the class than may.
local is_full = segment(function(_, upstream)
    return upstream.waiting + claims.others_of(upstream.index)
           > upstream.max_waiting
end)


-- survey[upstream]: its servers, with what is claimed of them here.
local survey = segment(function(_, upstream)
    gather(upstream.count, upstream.server, view.in_flight, view.work)
    claims.add_own(upstream, view.in_flight, view.work)
end)


-- publish[p]: that the request which has just come waits for peer p.
local publish = segment(function(_, p)
    if p >= 0 then
        local mean_service = tonumber(map.head.mean_service)
        claims.begin_walk(admitted_at, mean_service)
        claims.claimed(admitted, p, room_module.urgency_of(
            admitted.upstream, admitted, admitted_at, mean_service))
    end
end)


local function hold(record, upstream, now)
    if not record.semaphore then
        local err
        record.semaphore, err = semaphores.new(0)
        if not record.semaphore then
            return nil, err
        end
    end
    local expected = join[record]
    drain(now, record)
    if record.is_bound then
        return true
    end
    if expected > upstream.max_wait_seconds or is_full[upstream] then
        _M.vacate(record)
    else
        if record.claim < 0 and not view.is_alone then
            -- No drain has looked at it: others are to know all the same.
            local _ = survey[upstream]
            _ = publish[picked[upstream]]
        end
        if wait(record, upstream, now) then
            return true
        end
        expected = pace.expected_wait(upstream, clock())
    end
    claims.class_refused(upstream.index)
    return false, expected
end


-- What begin returns.
local DONE, TO_PICK, TO_WAIT = 0, 1, 2


-- begin[upstream]: all that is before the pick.
local begin = segment(function(_, upstream)
    local now = clock()
    local record = enter(get_request(), upstream, now)
    admitted, admitted_at = record, now
    follow(registry, dict, now)
    if not upstream.is_holding then
        return DONE
    end
    touch(now)
    local tried = probe(upstream, now)
    if tried then
        begin_try(record, tried, nil, now)
        mark_probe(record)
        record.is_bound = true
        return DONE
    end
    if room.waiting == 0 and not others_wait() then
        gather(upstream.count, upstream.server, view.in_flight, view.work)
        return TO_PICK
    end
    return TO_WAIT
end)


-- settle[p]: binds the request to peer p, if that has room or there is none.
local settle = segment(function(_, p)
    if p < 0 then
        return DONE
    end
    local record = admitted
    local i = record.upstream.server[p]
    if is_free(i) then
        begin_try(record, p, view.scores, admitted_at)
        record.is_bound = true
        return DONE
    end
    return TO_WAIT
end)


-- Begins the pass of a request at an upstream, and binds it to a peer, now or
-- when one has room; to be called in the access phase, which it may leave for
-- as long as the request waits. Returns true; false and the expected wait in
-- seconds where it is to be refused; nil and an error, after which the
-- balancer phase picks.
function _M.admit(upstream)
    local step = begin[upstream]
    serve()
    if step == TO_PICK then
        step = settle[picked[upstream]]
    end
    if step == TO_WAIT then
        return hold(admitted, upstream, admitted_at)
    end
    return true
end

-- See rule.pick and segment.lua.
off(drain)
off(_M.admit)
off(_M.serve)


return _M
