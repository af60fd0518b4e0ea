-- What workers tell each other of their waiting rooms: in each worker's row
-- of the shared mapping, per server, how many of its requests wait for it,
-- their work, and how urgent the most urgent of them is: the instant by which
-- it must start, and its urgency from then on.
--
-- A worker that serves its own room thereby counts the more urgent requests
-- of others, and does not take the slot that one of them waits for; and who
-- frees a slot knows whom to wake. The figures are as old as the last look of
-- their worker at its room, 50 ms at most: they steer, nothing is counted by
-- them. With one worker nothing is published.
local mapping = require("resty.trimtab.mapping")
local room_module = require("resty.trimtab.room")
local rule = require("resty.trimtab.rule")

local due_of = room_module.due_of
local huge = math.huge
local lateness = rule.lateness
local max = math.max
local min = math.min
local new = require("ffi").new
local tonumber = tonumber

-- Its square makes any difference of urgencies, of whatever size, larger than
-- 1: they may be as small as doubles get.
local APART = 1e300

local _M = {}

local map, head, own
local others, count = {}, 0
-- The rooms of the first of them once more, by name, and an empty one where
-- there are not so many: as in counters.lua.
local NAMED = 3
local room_1, room_2, room_3
local nobody = new("trimtab_room")
local seen_stamp = -1
-- When the present walk runs, and the scale of urgencies then.
local walk_now, mean_service = 0, 1
-- What a request sees: the servers with the claims of others.
local seen, seen_work
-- The walk in which a server's published urgency was set.
local walk, set_in = 0, nil


-- Publishes in this row of the mapping.
function _M.open(shared, row)
    map, head, own, seen_stamp = shared, shared.head, row, -1
    local capacity = tonumber(head.address_capacity)
    seen, seen_work = new("double[?]", capacity), new("double[?]", capacity)
    set_in = new("double[?]", capacity)
end


local function refresh()
    seen_stamp = head.rows_stamp
    count = 0
    for i = 0, tonumber(head.rows) - 1 do
        if i ~= own.index and map.owners[i].pid ~= 0 then
            count = count + 1
            others[count] = mapping.row(map, i)
        end
    end
    local function named(r)
        return r <= count and others[r].room or nobody
    end
    room_1, room_2, room_3 = named(1), named(2), named(3)
end


-- Whether there is no other worker.
function _M.is_alone()
    if head.rows_stamp ~= seen_stamp then
        refresh()
    end
    return count == 0
end

local is_alone = _M.is_alone


-- Whether requests wait in other workers.
function _M.others_wait()
    if is_alone() then
        return false
    end
    if room_1.waiting + room_2.waiting + room_3.waiting > 0 then
        return true
    end
    if count > NAMED then
        for r = NAMED + 1, count do
            if others[r].room.waiting > 0 then
                return true
            end
        end
    end
    return false
end


-- Requests of a class that wait in other workers.
function _M.others_of(u)
    local sum = 0
    if not is_alone() then
        for r = 1, count do
            sum = sum + others[r].classes[u].waiting
        end
    end
    return tonumber(sum)
end


-- How urgent the request of a row is that waits for server i.
local function urgency_at(row, i)
    return row.value[i] + lateness(row.due[i] - walk_now, mean_service)
end


-- For room.drain: the servers as the cursor of this class sees them.
function _M.see(class, view)
    local servers, u = class.server, class.urgency
    for p = 0, class.count - 1 do
        local i = servers[p]
        seen[i], seen_work[i] = view.in_flight[i], view.work[i]
    end
    for r = 1, count do
        local row = others[r]
        if row.room.waiting > 0 then
            for p = 0, class.count - 1 do
                local i = servers[p]
                -- 1 where it is more urgent, else 0: one is as frequent as
                -- the other, and each way would be a trace of its own.
                local more = max(0, min(1, (urgency_at(row, i) - u)
                                           * APART * APART))
                seen[i] = seen[i] + more * row.claims[i]
                seen_work[i] = seen_work[i] + more * row.claimed[i]
            end
        end
    end
    return seen, seen_work
end


-- A walk through the room begins: the urgencies that it finds replace those
-- published before.
function _M.begin_walk(now, seconds)
    walk = walk + 1
    walk_now, mean_service = now, seconds
end


-- Takes a request's claim back.
function _M.retract(waiter)
    local i = waiter.claim
    if i >= 0 then
        waiter.claim = -1
        local rest = own.claims[i] - 1
        own.claims[i] = rest
        own.claimed[i] = rest > 0 and own.claimed[i] - waiter.claim_work or 0
        if rest <= 0 then
            own.value[i] = 0
        end
    end
end


-- For room.drain, and for a request that begins to wait: publishes its claim.
function _M.claimed(waiter, p, urgency)
    local class = waiter.class
    local i = class.server[p]
    if waiter.claim ~= i then
        _M.retract(waiter)
        waiter.claim = i
        waiter.claim_work = class.service * class.affinity[p]
        own.claims[i] = own.claims[i] + 1
        own.claimed[i] = own.claimed[i] + waiter.claim_work
    end
    if set_in[i] ~= walk or urgency > urgency_at(own, i) then
        set_in[i] = walk
        own.due[i], own.value[i] = due_of(class, waiter)
    end
end


-- Adds what this worker has claimed to the servers of a class.
function _M.add_own(class, in_flight, work)
    for p = 0, class.count - 1 do
        local i = class.server[p]
        in_flight[i] = in_flight[i] + own.claims[i]
        work[i] = work[i] + own.claimed[i]
    end
end


-- Publishes how many wait here.
function _M.publish(waiting)
    own.room.waiting = waiting
end


-- Publishes how many of class u wait here, by +1 or -1.
function _M.class_waiting(u, change)
    local class = own.classes[u]
    class.waiting = class.waiting + change
end


-- A request of class u was refused.
function _M.class_refused(u)
    local class = own.classes[u]
    class.refused = class.refused + 1
end


-- The port of the worker to wake when server i has room: that of the most
-- urgent request for it, or else of any request. 0 when there is none.
function _M.port_for(i, now, seconds)
    if is_alone() then
        return 0
    end
    walk_now, mean_service = now, seconds
    local best, port, any = -huge, 0, 0
    for r = 1, count do
        local row = others[r]
        if row.room.waiting > 0 then
            any = max(any, row.owner.port)
            local urgency = row.claims[i] > 0 and urgency_at(row, i) or -huge
            if urgency > best then
                best, port = urgency, row.owner.port
            end
        end
    end
    return tonumber(port > 0 and port or any)
end


-- The port of the next worker, in the order of the rows, in which requests
-- wait: to pass a poke on. 0 when there is none.
function _M.next_port()
    if is_alone() then
        return 0
    end
    local after, first = 0, 0
    for r = count, 1, -1 do
        local row = others[r]
        if row.room.waiting > 0 then
            if row.index > own.index then
                after = row.owner.port
            else
                first = row.owner.port
            end
        end
    end
    return tonumber(after > 0 and after or first)
end


-- How many other workers there are.
function _M.others()
    return is_alone() and 0 or count
end


return _M
