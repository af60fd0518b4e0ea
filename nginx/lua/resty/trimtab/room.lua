-- The waiting room: which requests wait in nginx, in which order they are
-- served, and where each of them goes.
--
-- Pure, as the rule is: tables and arrays in, calls of `bind` out; no nginx,
-- no clock, no random source. python/trimtab/twin/room.py is the same in
-- Python, and tests/data/golden/rule.json holds both to it.
--
-- A class waits in the order of arrival, and only the heads of the classes
-- are compared, by rule.urgency: within a class the older is never less
-- urgent. A slot that becomes free goes down that order: each request claims
-- its best server, the claims of those before it counted, and is bound where
-- that server is below its limit. So a request may wait for a fast server
-- while a slow one is free, and the slow one goes to the first whose turn at
-- the fast one would come too late.
--
-- Nobody starves. Of the requests that are bound from the room at least every
-- TURNS-th is the oldest of those that can no longer be in time, whatever
-- their class. So one that is late, and finds N older ones waiting, is bound
-- after TURNS * (N + 1) others at most, unless none of its servers has room.
--
-- A class (a table of the caller's, which stays its owner) has
--     service, deadline, count, server, weight, affinity, skip   for the rule
-- and gets from add_class
--     first, last, waiting
-- A waiter (any table) has `arrival`, and `class` while it waits; it gets
-- `before` and `after`. Nothing is allocated when one comes or goes.
local rule = require("resty.trimtab.rule")

local claim = rule.claim
local huge = math.huge
local log = math.log
local off = require("jit").off
local ipairs = ipairs
local segment = require("resty.trimtab.segment")
local urgency = rule.urgency

-- So many of a class make their claims: those behind would hardly get a slot
-- now, and in overload the room is full.
local CLAIMS = 32

-- A class without a deadline is measured by this many services: what is
-- short goes first, as it should where nothing else is known.
local DEADLINE_SERVICES = 4

-- After this many services a waiting request looks at the room by itself,
-- once: what it has waited may then be enough for a server that had room all
-- the time (see rule.claim), and nothing else need happen soon.
local LOOK_SERVICES = 1

-- An eighth of the slots for those whom the index would leave behind: enough
-- for a class of an eighth of the load to lose nothing in overload, and it
-- costs the others that much at worst.
local TURNS = 8

local _M = {
    DEADLINE_SERVICES = DEADLINE_SERVICES,
    LOOK_SERVICES = LOOK_SERVICES,
}


-- An empty room.
function _M.new()
    return { waiting = 0, classes = {}, bound = 0 }
end


-- Makes a class wait here.
function _M.add_class(room, class)
    class.first, class.last, class.waiting = false, false, 0
    room.classes[#room.classes + 1] = class
end


-- A request begins to wait, last in its class.
function _M.push(room, class, waiter)
    local last = class.last
    waiter.class = class
    waiter.before = last
    waiter.after = false
    if last then
        last.after = waiter
    else
        class.first = waiter
    end
    class.last = waiter
    class.waiting = class.waiting + 1
    room.waiting = room.waiting + 1
end


-- A request ends its wait, wherever it stands.
function _M.remove(room, waiter)
    local class, before, after = waiter.class, waiter.before, waiter.after
    if before then
        before.after = after
    else
        class.first = after
    end
    if after then
        after.before = before
    else
        class.last = before
    end
    waiter.class, waiter.before, waiter.after = false, false, false
    class.waiting = class.waiting - 1
    room.waiting = room.waiting - 1
end


local function deadline_of(class)
    local deadline = class.deadline
    return deadline > 0 and deadline or DEADLINE_SERVICES * class.service
end


-- How urgent a waiting request of a class is, now.
function _M.urgency_of(class, waiter, now, mean_service)
    return urgency(now, waiter.arrival, deadline_of(class), class.service,
                   mean_service)
end

local urgency_of = _M.urgency_of


-- The instant by which a waiting request must start to be in time, and how
-- urgent it is from then on.
function _M.due_of(class, waiter)
    local deadline = deadline_of(class)
    return waiter.arrival + deadline - class.service,
           -log(deadline * class.service)
end


-- Puts each class's cursor on its head.
local function rewind(classes, now, mean_service)
    for c = 1, #classes do
        local class = classes[c]
        local first = class.first
        class.cursor = first
        class.claims = 0
        class.urgency = first and urgency_of(class, first, now, mean_service)
                        or -huge
    end
end


-- The class whose cursor is the most urgent, or nil.
local function most_urgent(classes)
    local best, found = -huge, nil
    for c = 1, #classes do
        local class = classes[c]
        if class.cursor and class.urgency > best then
            best, found = class.urgency, class
        end
    end
    return found
end


-- The class whose cursor is the oldest of those that are late, or nil.
local function oldest_late(classes, now)
    local oldest, found = huge, nil
    for _, class in ipairs(classes) do
        local waiter = class.cursor
        if waiter and waiter.arrival < oldest
           and now > waiter.arrival + deadline_of(class) - class.service
        then
            oldest, found = waiter.arrival, class
        end
    end
    return found
end


-- The walk under way: what it was called with, and where it stands.
local walk_room, walk_view, walk_now, walk_bind
local walk_see, walk_claimed, walk_has_room
local is_turn, has_room, walker
local seen, seen_work

-- The walk is interpreted, a few steps a request, and its parts are segments
-- (segment.lua), so that no trace goes from the loop over the servers to
-- deeper calls: see rule.pick.

-- The class whose cursor is next, or false.
local function next_class(room)
    local view = walk_view
    if view.free <= 0 then
        return false
    end
    seen, seen_work = view.in_flight, view.work
    if is_turn then
        local class = oldest_late(room.classes, walk_now)
        if class then
            return class
        end
    end
    return most_urgent(room.classes) or false
end


-- begin[room]: puts the cursors on the heads. Returns the class that is
-- first, or false.
local begin = segment(function(_, room)
    rewind(room.classes, walk_now, walk_view.mean_service)
    is_turn = room.bound >= TURNS - 1
    return next_class(room)
end)


-- look[class]: the servers as its cursor is to see them.
local look = segment(function(_, class)
    seen, seen_work = walk_see(class, walk_view)
end)


-- claimed_by[class]: the peer that its cursor claims, or -1.
local claimed_by = segment(function(_, class)
    local view = walk_view
    local p, is_free = claim(class.count, class.server, class.weight,
                             class.affinity, class.skip, class.service,
                             seen, seen_work, view.rate, view.error,
                             view.slots, view.sharing, view.limit,
                             walk_now - class.cursor.arrival, view.uniform,
                             view.scores)
    has_room = is_free
    return p
end)


-- Counts a claim of peer p, and binds the waiter where it has room.
local function take(room, view, class, waiter, p)
    local i = class.server[p]
    view.in_flight[i] = view.in_flight[i] + 1
    view.work[i] = view.work[i] + class.service * class.affinity[p]
    if has_room and (not walk_has_room or walk_has_room(i)) then
        view.free = view.free - 1
        room.bound = is_turn and 0 or room.bound + 1
        is_turn = room.bound >= TURNS - 1
        _M.remove(room, waiter)
        walk_bind(waiter, p)
    else
        class.claims = class.claims + 1
        is_turn = false
        if walk_claimed then
            walk_claimed(waiter, p, class.urgency)
        end
    end
end


-- settle[p]: what follows from the claim, the cursor one further, and the
-- class that is next, or false.
local settle = segment(function(_, p)
    local class = walker
    local waiter = class.cursor
    local after = waiter.after
    if p >= 0 then
        take(walk_room, walk_view, class, waiter, p)
    else
        class.claims = huge
    end
    if class.claims >= CLAIMS then
        after = false
    end
    class.cursor = after
    if after then
        class.urgency = urgency_of(class, after, walk_now,
                                   walk_view.mean_service)
    end
    return next_class(walk_room)
end)


-- Binds what can be bound. `view` has the state of the servers:
--     in_flight, work      with this room's binds and claims added as it goes
--     rate, error, slots, sharing, limit, mean_service, uniform, scores
--     free                 the sum of limit - in_flight where that is more
--                          than 0, infinite where a limit is
-- `bind(waiter, p)` binds a request, already removed, to peer p of its class.
-- `see(class, waiter, view)`, if there is one, is called before each claim and
-- may exchange view.in_flight and view.work for the arrays that this request
-- is to see; `claimed(waiter, p, urgency)`, with it, after each claim that
-- stays one. `is_free(i)`, with them, says whether server i has room still:
-- the view is as old as the walk, and others bind meanwhile.
function _M.drain(room, view, now, bind, see, claimed, is_free)
    walk_room, walk_view, walk_now, walk_bind = room, view, now, bind
    walk_see, walk_claimed, walk_has_room = see, claimed, is_free
    walker = begin[room]
    while walker do
        if see then
            local _ = look[walker]
        end
        walker = settle[claimed_by[walker]]
    end
end

off(_M.drain)


return _M
