-- How much each server may have in flight before requests wait in nginx, and
-- which upstreams let them wait.
--
-- hold = "on" holds wherever a server's slots are known, "off" nowhere.
-- "auto" holds where that is better than to dispatch at once: where the slots
-- of every peer are known, by configuration or from the policy server, which
-- says those that it is sure of, and beside them guesses at the others. A peer
-- of unknown slots always has room, and would get all that the others have no
-- room for.
--
-- Slots that are an estimate are taken as they are, but for one second in
-- eight, when servers get two requests more. Never beyond its slots a server
-- would never show that it has more of them; always beyond them requests
-- queue there in the order in which they came. In the twin three classes have
-- twice the ART of known slots with two more always, and 1.1 times so.
local libc = require("resty.trimtab.libc")
local rule = require("resty.trimtab.rule")

local clock = libc.monotonic
local huge = math.huge
local ipairs = ipairs
local limit_of = rule.limit
local max = math.max
local tonumber = tonumber

-- A stalled server's rate comes close to 0; it must not divide by it.
local MIN_RATE = 1e-6

local TRIAL_EVERY_SECONDS = 8
local TRIAL_SECONDS = 1

local _M = {}


local function holds(registry, upstream)
    if not registry.settings.balance or not upstream.can_pick
       or upstream.hold == "off"
    then
        return false
    end
    local known, open = 0, 0
    for p = 0, upstream.count - 1 do
        if upstream.skip[p] == 0 then
            open = open + 1
            if registry.limit[upstream.server[p]] < huge then
                known = known + 1
            end
        end
    end
    if upstream.hold == "on" then
        return known > 0
    end
    return open > 0 and known == open
end


-- Brings registry.limit and upstream.is_holding up to date with the slots,
-- the rates and the drains. From a timer, and when the weights change.
function _M.refresh(registry)
    local rate = registry.map.rate
    local mean = tonumber(registry.map.head.mean_service)
    local is_trial = clock() % TRIAL_EVERY_SECONDS < TRIAL_SECONDS
    for _, i in ipairs(registry.servers) do
        registry.limit[i] = limit_of(registry.slots[i],
                                     registry.static_slots[i] > 0
                                     or not is_trial,
                                     mean / max(rate[i], MIN_RATE))
    end
    for _, upstream in ipairs(registry.upstreams) do
        upstream.is_holding = holds(registry, upstream)
    end
end


return _M
