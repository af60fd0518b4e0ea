-- Plays golden sequences on the Lua rule, and times its scan. Answers JSON to
-- the JSON in the request's body; tests/rule_sequences.py says what it means.
local cjson = require("cjson")
local ffi = require("ffi")
local libc = require("resty.trimtab.libc")
local room_module = require("resty.trimtab.room")
local rule = require("resty.trimtab.rule")

local ipairs = ipairs


local function doubles(values)
    return ffi.new("double[?]", #values, values)
end


local function zeros(count)
    return ffi.new("double[?]", count)
end


local function replay(case, tau)
    local count = #case.slots
    local slots, prior = doubles(case.slots), doubles(case.prior)
    local sharing = doubles(case.sharing)
    local n, work, err = zeros(count), zeros(count), zeros(count)
    local done, busy, last = zeros(count), zeros(count), zeros(count)
    local rate, scores = zeros(count), zeros(count)
    for i = 0, count - 1 do
        rate[i] = 1
    end
    local mean = case.mean_service
    local tries, answers = {}, {}

    local function carry(i, now)
        local idle = rule.advance(i, now, n[i], slots, done, busy, last, tau)
        if n[i] == 0 then
            err[i] = rule.forget(err[i], idle)
        end
        rate[i] = rule.rate(done[i], busy[i], prior[i], mean)
    end

    local play = {}

    function play.dispatch(now, class, uniform, skipped)
        local j = case.classes[class + 1]
        local peers = #j.server
        local skip = zeros(peers)
        for _, p in ipairs(skipped) do
            skip[p] = 1
        end
        local p = rule.pick(peers, doubles(j.server), doubles(j.weight),
                            doubles(j.affinity), skip, j.service, n, work,
                            rate, err, slots, sharing, uniform, scores)
        if p < 0 then
            tries[#tries + 1] = {}
            return { -1, 0 }
        end
        local score = scores[p]
        local i, own = j.server[p + 1], j.service * j.affinity[p + 1]
        carry(i, now)
        n[i] = n[i] + 1
        work[i] = work[i] + own
        tries[#tries + 1] = { i, own }
        return { p, score }
    end

    function play.finish(now, which, failed)
        local i, own = tries[which + 1][1], tries[which + 1][2]
        rule.advance(i, now, n[i], slots, done, busy, last, tau)
        if not failed then
            done[i] = done[i] + own
        end
        err[i] = rule.error_ratio(err[i], failed)
        rate[i] = rule.rate(done[i], busy[i], prior[i], mean)
        n[i] = n[i] - 1
        work[i] = n[i] > 0 and work[i] - own or 0
        return { rate[i], err[i] }
    end

    function play.idle(now)
        local rates = {}
        for i = 0, count - 1 do
            carry(i, now)
            rates[i + 1], rates[i + 1 + count] = rate[i], err[i]
        end
        return rates
    end

    function play.urgency(now, arrival, class)
        local j = case.classes[class + 1]
        return { rule.urgency(now, arrival, j.deadline, j.service, mean) }
    end

    for o, operation in ipairs(case.operations) do
        answers[o] = play[operation[1]](unpack(operation, 2))
    end
    return answers
end


-- Plays a room's operations; see replay_room in tests/rule_sequences.py.
local function replay_room(case)
    local count = #case.slots
    local room = room_module.new()
    local n, work = zeros(count), zeros(count)
    local view = {
        in_flight = zeros(count), work = zeros(count),
        rate = doubles(case.rate), error = doubles(case.error),
        slots = doubles(case.slots), limit = zeros(count),
        sharing = doubles(case.sharing),
        mean_service = case.mean_service, scores = zeros(count),
    }
    -- As limits.lua does, on the clock of the case.
    local function refresh(now)
        for i = 1, count do
            view.limit[i - 1] = rule.limit(case.slots[i],
                                           case.given[i] or now % 8 >= 1,
                                           case.mean_service / case.rate[i])
        end
    end
    local classes = {}
    for c, class in ipairs(case.classes) do
        classes[c] = {
            service = class.service, deadline = class.deadline,
            count = #class.server, server = doubles(class.server),
            weight = doubles(class.weight), skip = doubles(class.skip),
            affinity = doubles(class.affinity),
        }
        room_module.add_class(room, classes[c])
    end
    local in_flight, held, arrived, bound = {}, {}, 0, nil

    local function bind(waiter, p)
        local class = waiter.of
        local i, own = class.server[p], class.service * class.affinity[p]
        n[i] = n[i] + 1
        work[i] = work[i] + own
        in_flight[#in_flight + 1] = { i, own }
        for h, other in ipairs(held) do
            if other == waiter then
                table.remove(held, h)
                break
            end
        end
        bound[#bound + 1] = { waiter.number, p }
    end

    local play = {}

    function play.arrive(now, which)
        local class = classes[which + 1]
        local waiter = { arrival = now, number = arrived, of = class }
        arrived = arrived + 1
        room_module.push(room, class, waiter)
        held[#held + 1] = waiter
    end

    function play.finish(_, which)
        if #in_flight > 0 then
            local gone = table.remove(in_flight, which % #in_flight + 1)
            local i = gone[1]
            n[i] = n[i] - 1
            work[i] = n[i] > 0 and work[i] - gone[2] or 0
        end
    end

    function play.leave(_, which)
        if #held > 0 then
            room_module.remove(room,
                               table.remove(held, which % #held + 1))
        end
    end

    function play.look()
    end

    local answers = {}
    for o, operation in ipairs(case.operations) do
        local what, now, which, uniform = unpack(operation)
        bound = {}
        play[what](now, which)
        refresh(now)
        local free = 0
        for i = 0, count - 1 do
            view.in_flight[i], view.work[i] = n[i], work[i]
            free = free + math.max(0, view.limit[i] - n[i])
        end
        view.free, view.uniform = free, uniform
        room_module.drain(room, view, now, bind)
        answers[o] = bound
    end
    return { bound = answers, waiting = room.waiting, held = #held }
end


-- Microseconds of a pick among `peers`, over `rounds`.
local function cost(peers, rounds)
    local n, work, err = zeros(peers), zeros(peers), zeros(peers)
    local rate, ones, skip = zeros(peers), zeros(peers), zeros(peers)
    local slots, scores, server = zeros(peers), zeros(peers), zeros(peers)
    for p = 0, peers - 1 do
        server[p], ones[p], slots[p] = p, 1, 2
        rate[p] = 0.5 + p / peers
        n[p] = p % 5
        work[p] = n[p] * 0.01
    end
    local sum = 0
    local function run(count)
        local start = libc.monotonic()
        for r = 1, count do
            local p = rule.pick(peers, server, ones, ones, skip, 0.01, n,
                                work, rate, err, slots, skip, r / count, scores)
            n[p] = n[p] + 1
            sum = sum + p
            n[(p + r) % peers] = 0
        end
        return (libc.monotonic() - start) / count * 1e6
    end
    run(rounds)
    return { microseconds = run(rounds), sum = sum }
end


ngx.req.read_body()
local request = cjson.decode(ngx.req.get_body_data())
if request.cost then
    ngx.print(cjson.encode(cost(request.cost, request.rounds)))
else
    -- As many digits as cjson can.
    cjson.encode_number_precision(14)
    local answers = {}
    for c, case in ipairs(request.cases) do
        answers[c] = replay(case, request.tau)
    end
    local rooms = {}
    for r, case in ipairs(request.rooms) do
        rooms[r] = replay_room(case)
    end
    ngx.print(cjson.encode({ cases = answers, rooms = rooms }))
end
