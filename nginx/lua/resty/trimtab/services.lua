-- Service times v_j that the hook sees by itself, from tries that found a
-- free slot (so that they did not queue) and succeeded.
--
-- Scale. A delay is v_j * a_ij / rate_i, so v and the rates share a freedom:
-- double both and nothing changes. If v_j were estimated from time * rate and
-- the rates from v_j in turn, both would drift together without end. So v_j
-- here is the plain mean of the times of the class (times the peer's prior
-- rate and over its affinity, both 1 until learned), which no estimate of a
-- rate enters; the rates are then relative to it, and 1 is what a request of
-- the class meets on average. That makes the prior, 1, a fair guess for a new
-- or idle peer: one that draws all traffic has a rate of 1 itself, and not of
-- more because of a slow sample that another once gave. When v_j moves, all
-- rates follow within their short memory, and picks do not change.
local counters = require("resty.trimtab.counters")
local registry_module = require("resty.trimtab.registry")

local ipairs = ipairs
local max = math.max
local tonumber = tonumber

local DEFAULT_SERVICE_SECONDS = registry_module.DEFAULT_SERVICE_SECONDS
-- No less is believed, so that nothing is divided by zero.
local MIN_SERVICE_SECONDS = 1e-6
-- Memory of a class's mean, in samples. The mean of the first ones, then an
-- EWMA: noise of 7% of the deviation.
local MEMORY = 200

local _M = {}


-- A try at peer p of an upstream took this long without queueing. Returns
-- whether that is the first that is known of the class.
function _M.sample(registry, upstream, p, seconds)
    local service = registry.map.services[upstream.index]
    local count = service.count + 1
    local nominal = seconds * registry.prior[upstream.server[p]]
                    / upstream.affinity[p]
    service.count = count
    service.mean_seconds = service.mean_seconds
                           + (nominal - service.mean_seconds)
                             * max(1 / count, 1 / MEMORY)
    return count == 1
end


local function estimate(registry, upstream)
    local service = registry.map.services[upstream.index]
    if service.count > 0 then
        return tonumber(service.mean_seconds)
    end
end


-- Brings v_j of all upstreams up to date: the policy server's, else the own
-- estimate, else the mean of the known ones. Cheap; from a timer, and when
-- the weights change.
function _M.refresh(registry)
    local sum, known = 0, 0
    for _, upstream in ipairs(registry.upstreams) do
        local seconds = upstream.learned_service
                        or estimate(registry, upstream)
        upstream.service = seconds or 0
        if seconds then
            sum = sum + seconds
            known = known + 1
        end
    end
    local mean = known > 0 and max(sum / known, MIN_SERVICE_SECONDS)
                 or DEFAULT_SERVICE_SECONDS
    for _, upstream in ipairs(registry.upstreams) do
        if upstream.service <= 0 then
            upstream.service = mean
        end
    end
    registry.map.head.mean_service = mean
    counters.tune(mean)
end


return _M
