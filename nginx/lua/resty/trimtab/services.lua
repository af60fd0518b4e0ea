-- Service times v_j that the hook sees by itself, from tries that found a
-- free slot (so that they did not queue) and succeeded.
--
-- Scale. A delay is v_j * a_ij / rate_i, so v and the rates share a freedom:
-- double both and nothing changes. If v_j were estimated from time * rate and
-- the rates from v_j in turn, both would drift together without end. So v_j
-- here is the plain mean of the times at the peers (each peer with equal
-- weight, times its prior rate and over its affinity, both 1 until learned),
-- which no estimate of a rate enters; the rates are then relative to it: 1 is
-- the average peer. All peers equal in weight, and not in traffic, because
-- the mix of peers changes as soon as one slows down. When v_j moves, all
-- rates follow within their short memory, and picks do not change.
local counters = require("resty.trimtab.counters")
local registry_module = require("resty.trimtab.registry")

local ipairs = ipairs
local max = math.max
local tonumber = tonumber

local DEFAULT_SERVICE_SECONDS = registry_module.DEFAULT_SERVICE_SECONDS
-- No less is believed, so that nothing is divided by zero.
local MIN_SERVICE_SECONDS = 1e-6
-- Memory of a pair's mean, in samples. The mean of the first ones, then an
-- EWMA: noise of 14% of the deviation, and a slowdown enters in seconds.
local MEMORY = 50

local _M = {}


-- A try in pair q took this long without queueing. Returns whether that is the
-- first that is known of the pair.
function _M.sample(services, q, seconds)
    local service = services[q]
    local count = service.count + 1
    service.count = count
    service.mean_seconds = service.mean_seconds
                           + (seconds - service.mean_seconds)
                             * max(1 / count, 1 / MEMORY)
    return count == 1
end


local function estimate(registry, upstream)
    local services, prior = registry.map.services, registry.prior
    local sum, known = 0, 0
    for p = 0, upstream.count - 1 do
        local service = services[upstream.pair[p]]
        if service.count > 0 then
            sum = sum + tonumber(service.mean_seconds)
                        * prior[upstream.server[p]] / upstream.affinity[p]
            known = known + 1
        end
    end
    return known > 0 and sum / known or nil
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
