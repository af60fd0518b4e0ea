-- Traffic through the hook's own modules, outside of nginx: several workers
-- in one Lua state, simulated servers and clock, and in the place of nginx's
-- Lua interface the few functions that the modules call. Everything is drawn
-- from a seed, so the same seed ends in the same digest, whoever runs it; and
-- machine code must end in that of the interpreter.
--
-- What nginx does is kept where it matters to LuaJIT: the access phase runs in
-- a new coroutine, whose stack is small, and the others in the main one.
--
-- run(seed, requests, is_compiled) returns the digest, the number of walks
-- through rooms that found someone waiting, that of picks, and of requests
-- that waited. Raises where a count is not zero at rest.
local ffi = require("ffi")
local jit = require("jit")
local libc = require("resty.trimtab.libc")
local mapping = require("resty.trimtab.mapping")

local cast = ffi.cast
local floor = math.floor
local insert = table.insert
local log = math.log
local remove = table.remove

-- Stateful modules, of which each worker has its own.
local MODULES = {
    "account", "claims", "counters", "dispatch", "ejection", "holding",
    "limits",
    "names", "passes", "picks", "registry", "report", "requests", "room",
    "rows", "rule", "services", "tries", "variables", "wake", "weights",
}
local RECHECK_SECONDS = 0.05
local MAINTENANCE_SECONDS = 0.4

local now, seed, digest
local current        -- the request whose phase runs
local events         -- a heap by time, then number
local count_events


-- Park and Miller's generator.
local function uniform()
    seed = seed * 16807 % 2147483647
    return seed / 2147483647
end


local function exponential(mean)
    return -mean * log(1 - uniform())
end


local function draw(from, to)
    return from + floor(uniform() * (to - from + 1))
end


local function note(number)
    digest = (digest * 31 + number + 7) % 4294967291
end


local function is_before(a, b)
    return a.at < b.at or a.at == b.at and a.number < b.number
end


local function schedule(at, run)
    count_events = count_events + 1
    local event = { at = at, number = count_events, run = run }
    local e = #events + 1
    events[e] = event
    while e > 1 do
        local up = floor(e / 2)
        if not is_before(event, events[up]) then
            break
        end
        events[e], events[up] = events[up], event
        e = up
    end
end


local function next_event()
    local first, last = events[1], remove(events)
    if first == last then
        return first
    end
    local e, count = 1, #events
    while true do
        local down = 2 * e
        if down > count then
            break
        end
        if down < count and is_before(events[down + 1], events[down]) then
            down = down + 1
        end
        if not is_before(events[down], last) then
            break
        end
        events[e] = events[down]
        e = down
    end
    events[e] = last
    return first
end


-- What the modules find in the place of nginx's.

local dict = {
    get = function() end,
    set = function() return true end,
    add = function() return true end,
    delete = function() end,
}

_G.ngx = {
    status = 200,
    NOTICE = 6, WARN = 5, ERR = 4,
    log = function() end,
    config = { nginx_version = 0 },
    crc32_long = function() return 1 end,
    req = { get_method = function() return "GET" end },
    worker = {
        pid = function() return 1 end,
        exiting = function() return false end,
    },
}

package.loaded["resty.core.base"] = {
    get_request = function() return current.pointer end,
}

package.loaded["ngx.balancer"] = {
    set_current_peer = function(address)
        current.address = address
        return true
    end,
    get_last_failure = function()
        return current.failure
    end,
}

local semaphore = {}
semaphore.__index = semaphore

function semaphore:post()
    self.posts = self.posts + 1
    if self.waiter then
        local waiter = self.waiter
        schedule(now, function() waiter(true) end)
    end
end

function semaphore:wait(seconds)
    if self.posts > 0 then
        self.posts = self.posts - 1
        return true
    end
    if seconds <= 0 then
        return nil, "timeout"
    end
    return coroutine.yield(self, seconds)
end

package.loaded["ngx.semaphore"] = {
    new = function() return setmetatable({ posts = 0 }, semaphore) end,
}

libc.monotonic = function() return now end
libc.raise_when_freed = function(_, memory)
    current.flag = cast("int *", memory)
    return true
end
libc.is_alive = function() return true end

local variables = {
    text = function() end,
    has_text = function() return not current.is_aborted end,
}
function variables.whole_number()
end
function variables.last_number(_, name)
    if name == "upstream_status" then
        return current.status
    end
    if name == "upstream_response_time" then
        return current.seconds
    end
end


-- The servers.

local function start_next(server)
    while server.busy < server.slots and server.queue[1] do
        local job = remove(server.queue, 1)
        server.busy = server.busy + 1
        schedule(now + job.work / server.speed, function()
            server.busy = server.busy - 1
            start_next(server)
            job.done()
        end)
    end
end


local function new_servers()
    local servers, by_address = {}, {}
    for s = 1, draw(2, 7) do
        servers[s] = {
            address = "127.0.0.1:" .. 9000 + s, slots = draw(1, 4),
            speed = draw(1, 4), busy = 0, queue = {},
            -- As the hook is told; they queue all the same.
            is_sharing = uniform() < 0.2,
        }
        by_address[servers[s].address] = servers[s]
    end
    return servers, by_address
end


local function settings_of(servers, classes)
    local upstreams = {}
    local pairs_ = 0
    local hold = uniform() < 0.8 and "on" or "auto"
    for c, class in ipairs(classes) do
        local peers = {}
        for _, server in ipairs(servers) do
            if uniform() < 0.9 or #peers == 0 then
                insert(peers, {
                    address = server.address, is_literal = true,
                    slots = uniform() < 0.9 and server.slots or 0,
                    weight = draw(1, 3),
                    is_sharing = server.is_sharing,
                })
            end
        end
        pairs_ = pairs_ + #peers
        upstreams[c] = {
            name = "class" .. c, hold = hold, max_waiting = draw(20, 400),
            max_wait_seconds = 5, timeout_seconds = 60, priority = 1,
            deadline_seconds = class.deadline, peers = peers,
            eject_failures = 3, eject_error_ratio = 0.5,
            eject_stall_seconds = 0.25, eject_seconds = 1,
            eject_max_seconds = 60, eject_max_ratio = 0.5,
            slow_start_seconds = 1, retry_non_idempotent = false,
            retry_ratio = 0.2, retries_per_second = 10, tries = 3,
            try_timeout_seconds = 0,
        }
    end
    return { balance = true, upstreams = upstreams, interval_seconds = 1,
             address_count = #servers, pair_count = pairs_ }
end


-- A worker: its own copy of the stateful modules, over the shared mapping.
local function new_worker(map, settings, index, workers, totals)
    for _, name in ipairs(MODULES) do
        package.loaded["resty.trimtab." .. name] = nil
    end
    package.loaded["resty.trimtab.variables"] = variables
    local worker = { index = index }
    package.loaded["resty.trimtab.wake"] = {
        poke = function(port, i, hops)
            if port > 0 then
                note(port)
                schedule(now + 5e-5, function()
                    workers[port].look(i, hops)
                end)
            end
        end,
        listen = function(_, _, look)
            worker.look = look
        end,
    }
    local function get(name)
        return require("resty.trimtab." .. name)
    end
    local room = get("room")
    local drain = room.drain
    function room.drain(a_room, ...)
        if a_room.waiting > 0 then
            totals.walks = totals.walks + 1
        end
        return drain(a_room, ...)
    end
    worker.registry = get("registry").new(map, settings)
    for _, name in ipairs({ "counters", "dispatch", "ejection", "holding",
                            "passes", "requests", "services" }) do
        worker[name] = get(name)
    end
    local row = get("rows").claim(map, dict, index, 1, index)
    row.owner.port = index
    worker.row = row
    worker.counters.open(map, worker.registry, row)
    get("picks").open(row)
    worker.passes.open(worker.registry, worker.holding)
    worker.dispatch.open(worker.registry, dict, index)
    worker.ejection.open(worker.registry)
    worker.holding.open(worker.registry, dict, row)
    worker.holding.listen(index)
    worker.services.refresh(worker.registry)
    worker.ejection.refresh(now)
    return worker
end


-- One request, from arrival to log phase.
local function request(worker, class, by_address, number, totals)
    local me = { pointer = cast("void *", 4096 + 64 * number) }
    local upstream = worker.registry.by_name["class" .. class.index]
    local co, sem, token
    local is_over = false

    local function finish()
        is_over = true
        current = me
        worker.passes.leave(upstream)
        if me.flag then
            me.flag[0] = 1
        end
    end

    local function go()
        current = me
        totals.picks = totals.picks + 1
        worker.dispatch.place(upstream)
        local server = by_address[me.address]
        note(server.speed + server.slots * 8)
        me.began = now
        insert(server.queue, { work = exponential(class.service),
                               done = function()
            if is_over then
                return
            end
            me.seconds = floor((now - me.began) * 1000) / 1000
            if uniform() < 0.02 then
                me.status, me.failure = 502, "failed"
                if (me.tries or 0) < 2 then
                    me.tries = (me.tries or 0) + 1
                    return go()
                end
            end
            me.status = me.failure and 502 or 200
            me.failure = nil
            finish()
        end })
        start_next(server)
    end

    local advance

    local function step(...)
        current = me
        local ok, first, second = coroutine.resume(co, ...)
        if not ok then
            error(first, 0)
        end
        advance(first, second)
    end

    function advance(first, second)
        if coroutine.status(co) == "dead" then
            if first == false then
                note(3)
                me.status = 503
                return finish()
            end
            return go()
        end
        sem, token = first, {}
        local mine = token
        local function waiter(is_post)
            if token == mine and not is_over then
                token, sem.waiter = nil, nil
                if is_post then
                    sem.posts = sem.posts - 1
                end
                step(is_post or nil, not is_post and "timeout" or nil)
            end
        end
        sem.waiter = waiter
        schedule(now + second, waiter)
        if uniform() < 0.005 then
            schedule(now + exponential(0.01), function()
                if token == mine and not is_over then
                    sem.waiter = nil
                    me.is_aborted, me.status = true, 499
                    finish()
                end
            end)
        end
    end

    co = coroutine.create(function()
        local is_admitted, more = worker.holding.admit(upstream)
        if is_admitted == nil then
            error(more, 0)
        end
        return is_admitted
    end)
    step()
    if coroutine.status(co) ~= "dead" then
        totals.waited = totals.waited + 1
    end
end


-- Nothing is in flight, nobody waits.
local function check_rest(map, workers)
    for _, worker in ipairs(workers) do
        worker.requests.sweep(worker.passes.abandon)
        local live, _, limbo = worker.requests.counts()
        assert(live == 0 and limbo == 0, "records of requests are left")
        assert(worker.holding.count() == 0, "requests wait at rest")
        local row = worker.row
        for i = 0, tonumber(map.head.addresses) - 1 do
            assert(row.in_flight[i] == 0 and row.work[i] == 0
                   and row.claims[i] == 0, "counts are left at rest")
        end
        assert(row.room.waiting == 0, "waiting requests are left at rest")
    end
end


local function run(a_seed, requests, is_compiled)
    seed, now, digest = a_seed % 2147483646 + 1, 1000, 0
    for _ = 1, 10 do
        uniform()
    end
    events, count_events = {}, 0
    -- Hotter than usual, so that more of the paths are compiled.
    if is_compiled then
        jit.on()
        jit.opt.start("hotloop=" .. draw(2, 56), "hotexit=" .. draw(1, 10))
    else
        draw(2, 56)
        draw(1, 10)
        jit.off()
    end
    local totals = { walks = 0, picks = 0, waited = 0 }
    local servers, by_address = new_servers()
    local capacity = 0
    for _, server in ipairs(servers) do
        capacity = capacity + server.slots * server.speed
    end
    local classes, mean = {}, 0
    for c = 1, draw(1, 4) do
        local service = 0.002 * 10 ^ uniform()
        classes[c] = { index = c, service = service,
                       deadline = uniform() < 0.8
                                  and service * draw(1, 20) or nil }
        mean = mean + service
    end
    mean = mean / #classes
    local settings = settings_of(servers, classes)
    local map = assert(mapping.create(settings.address_count,
                                      settings.pair_count, 4, 0))
    map.head.generation = 1
    local workers = {}
    for w = 1, draw(1, 4) do
        workers[w] = new_worker(map, settings, w, workers, totals)
    end

    local is_done = false
    local function every(seconds, act)
        local function tick()
            act()
            if not is_done then
                schedule(now + seconds, tick)
            end
        end
        schedule(now + seconds, tick)
    end

    for _, worker in ipairs(workers) do
        every(RECHECK_SECONDS, function() worker.look() end)
        every(MAINTENANCE_SECONDS, function()
            worker.requests.sweep(worker.passes.abandon)
            worker.services.refresh(worker.registry)
            worker.ejection.refresh(now)
        end)
    end
    -- Drains and weights change under way.
    every(1, function()
        local u, p = draw(1, #classes), draw(0, #servers - 1)
        local weight, is_drained = 0.5 + uniform(), uniform() < 0.2
        for _, worker in ipairs(workers) do
            local upstream = worker.registry.upstreams[u]
            if p < upstream.count then
                upstream.learned_weight[p] = weight
                upstream.drain[p] = is_drained and p > 0 and 1 or 0
                worker.ejection.refresh(now)
            end
        end
    end)
    local number, load = 0, 0.9
    local function arrive()
        number = number + 1
        request(workers[draw(1, #workers)], classes[draw(1, #classes)],
                by_address, number, totals)
        if number % 500 == 0 then
            load = 0.6 + 0.6 * uniform()
        end
        if number < requests then
            schedule(now + exponential(mean / (capacity * load)), arrive)
        else
            is_done = true
        end
    end
    arrive()
    while events[1] do
        local event = next_event()
        now = event.at
        event.run()
    end
    check_rest(map, workers)
    return digest, totals.walks, totals.picks, totals.waited
end

-- The traffic itself is interpreted: what is tried is the hook.
jit.off(true, true)

return run
