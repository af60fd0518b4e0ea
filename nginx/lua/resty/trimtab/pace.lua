-- The pace at which the waiting requests of a class are bound, and what one
-- that comes now would have to wait by it.
--
-- Pure: a class (a table of the caller's, as in room.lua, with
-- max_wait_seconds) gets `bound`, `binding` and `bound_at`.
local exp = math.exp

-- Fewer than so many, of those that were bound within about max_wait_seconds,
-- say nothing of a pace: then a request waits and sees.
local PACE_LEAST = 8

-- Of max_wait_seconds: nobody is refused for what would be before the first
-- in line has waited so long.
local SEEN_RATIO = 0.5

local _M = {}


-- Begins to count for a class.
function _M.open(class)
    class.bound, class.binding, class.bound_at = 0, 0, 0
end


-- What was bound of a class until now, and the seconds in which some waited;
-- both fade over max_wait_seconds, the time that they are to foretell. (A mean
-- of the last sixteen gaps took one stall of a second for the pace to come,
-- and refused hundreds that would have been served at once after it.)
local function fade(class, now)
    local gap = now - class.bound_at
    local kept = exp(-gap / class.max_wait_seconds)
    return class.bound * kept, class.binding * kept + gap
end


-- One of those that wait was bound.
function _M.bound(class, now)
    local bound, binding = fade(class, now)
    class.bound, class.binding = bound + 1, binding
    class.bound_at = now
end


-- The seconds that a request which comes now would have to wait, by the pace
-- at which its class is served here.
local function expected_wait(class, now)
    local bound, binding = fade(class, now)
    return bound < PACE_LEAST and 0 or class.waiting * binding / bound
end

_M.expected_wait = expected_wait


-- The same for a request that is about to join its class, 0 where that is not
-- known: while the first in line is young the pace may be that of a stall
-- which is over, and there is time to wait and see.
function _M.foretold(class, now)
    if class.waiting == 0 then
        class.bound_at = now
        return 0
    end
    if now - class.first.arrival <= SEEN_RATIO * class.max_wait_seconds then
        return 0
    end
    return expected_wait(class, now)
end


return _M
