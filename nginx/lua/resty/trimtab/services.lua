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
-- more because of a slow sample that another once gave.
--
-- When v_j moves, so do the rates, and picks do not change. What a server has
-- completed (D, see rule.lua) is counted in v_j: it is multiplied by what the
-- classes' v_j have grown by, each as frequent as its samples. A busy server
-- would forget the old ones by itself, but an idle one remembers for 10 s:
-- when the first sample was short, those that had nothing to do when v_j grew
-- fivefold were taken for five times slower than they are, and got nothing.
local counters = require("resty.trimtab.counters")
local registry_module = require("resty.trimtab.registry")

local ipairs = ipairs
local max = math.max
local min = math.min
local tonumber = tonumber

local DEFAULT_SERVICE_SECONDS = registry_module.DEFAULT_SERVICE_SECONDS
-- No less is believed, so that nothing is divided by zero.
local MIN_SERVICE_SECONDS = 1e-6
-- Memory of a class's mean, in samples. The mean of the first ones, then an
-- EWMA: noise of 7% of the deviation.
local MEMORY = 200
-- A class is taken to be like the others until so many samples say otherwise.
-- On servers that are three times slower for one class each, with slots
-- unknown, the first two or three samples came from the wrong servers, made
-- their classes look heavy, and so the queues grew by a hundred requests a
-- second, where no server stood idle for another sample. In the twin 5 to 50
-- are alike there and elsewhere.
local PRIOR_SAMPLES = 20

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


-- What is known of an upstream's v_j: seconds, and the samples behind them.
local function known(registry, upstream)
    if upstream.learned_service then
        return upstream.learned_service, MEMORY
    end
    local service = registry.map.services[upstream.index]
    return tonumber(service.mean_seconds), tonumber(service.count)
end


-- Brings v_j of all upstreams up to date: the policy server's, else the own
-- estimate, drawn to the mean over all samples where it has few. Cheap; from a
-- timer, and when the weights change. Two workers that do so in the same
-- microsecond may both multiply D: it is forgotten soon.
function _M.refresh(registry)
    local sum, samples = 0, 0
    for _, upstream in ipairs(registry.upstreams) do
        local seconds, count = known(registry, upstream)
        count = min(count, MEMORY)
        sum = sum + seconds * count
        samples = samples + count
    end
    local prior = samples > 0 and max(sum / samples, MIN_SERVICE_SECONDS)
                  or DEFAULT_SERVICE_SECONDS
    sum = 0
    local before, after = 0, 0
    for _, upstream in ipairs(registry.upstreams) do
        local seconds, count = known(registry, upstream)
        upstream.service = upstream.learned_service
                           or (seconds * count + prior * PRIOR_SAMPLES)
                              / (count + PRIOR_SAMPLES)
        sum = sum + upstream.service
        local service = registry.map.services[upstream.index]
        local share = tonumber(service.count) + 1
        if service.in_use > 0 then
            before = before + share * service.in_use
            after = after + share * upstream.service
        end
        service.in_use = upstream.service
    end
    local mean = max(sum / #registry.upstreams, MIN_SERVICE_SECONDS)
    registry.map.head.mean_service = mean
    counters.tune(mean, before > 0 and after / before or 1)
end


return _M
