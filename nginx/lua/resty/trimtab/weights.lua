-- Weights from the policy server: checked, kept where all workers find them,
-- and put in force.
--
-- Kept are the bytes of the last good GetWeightsResponse, in the shared dict,
-- and beside them, in the mapping, a stamp that rises with every change and
-- the instant when they expire. A worker compares the two numbers at each
-- request and reads the bytes only when something changed.
local ejection = require("resty.trimtab.ejection")
local libc = require("resty.trimtab.libc")
local policy = require("resty.trimtab.policy")
local registry_module = require("resty.trimtab.registry")
local services = require("resty.trimtab.services")

local clock = libc.monotonic
local follow_health = ejection.follow
local format = string.format
local ipairs = ipairs
local tonumber = tonumber

local KEY = "weights"
-- A weight set that claims to be good for longer is a mistake.
local MAX_TIME_TO_LIVE_SECONDS = 86400
-- Beyond these a number is a mistake as well, and infinity and NaN are.
local MIN_FACTOR = 1e-6
local MAX_FACTOR = 1e6
local MAX_SLOTS = 65535
local MAX_SECONDS = 86400
-- How long estimates and drains outlive the weights that they came with. A
-- balancer that forgot on which servers a class is three times slower would
-- overload them within a second.
local ESTIMATES_SECONDS = 3600

-- Whether what is held is in force: all of it, but for the weights, not.
local ALIVE, STALE, GONE = 2, 1, 0

local _M = {}

local seen_stamp, seen_age = 0, GONE


local function is_between(value, low, high)
    return value ~= nil and value >= low and value <= high
end


local function check_peer(peer)
    for _, name in ipairs({ "weight", "affinity", "rate" }) do
        if not is_between(peer[name], MIN_FACTOR, MAX_FACTOR) then
            return nil, format("%s %s of %s", name, peer[name],
                               peer.address)
        end
    end
    peer.slots = peer.slots or 0
    if not is_between(peer.slots, 0, MAX_SLOTS) then
        return nil, format("slots %s of %s", peer.slots, peer.address)
    end
    return true
end


local function check_span(seconds, what, name)
    if seconds and not (seconds > 0 and seconds <= MAX_SECONDS) then
        return nil, format("%s %s of %s", what, seconds, name)
    end
    return true
end


-- Whether every number in the answer can be used, and it knows one of our
-- peers. Returns true, or nil and what is wrong.
local function check(registry, response)
    local known = 0
    for _, learned in ipairs(response.upstreams) do
        local name = learned.upstream
        local ok, err = check_span(learned.deadline, "deadline", name)
        if ok then
            ok, err = check_span(learned.service_time, "service time", name)
        end
        if not ok then
            return nil, err
        end
        local upstream = registry.by_name[name]
        for _, peer in ipairs(learned.peers) do
            ok, err = check_peer(peer)
            if not ok then
                return nil, err .. " in " .. name
            end
            if upstream and upstream.position[peer.address] then
                known = known + 1
            end
        end
    end
    if known == 0 then
        return nil, "none of the peers is configured here"
    end
    return true
end


-- What the policy server is told that we have: epoch, generation (0, 0 when
-- it would be of no use).
function _M.held(registry)
    local head = registry.map.head
    if head.weights_names ~= registry.names then
        return 0, 0
    end
    return tonumber(head.weights_epoch), tonumber(head.weights_generation)
end


-- Takes an answer of the policy server. Returns true, or nil and why it is
-- refused; what is held stays then.
function _M.take(registry, dict, response)
    local head = registry.map.head
    local epoch, generation = response.epoch or 0, response.generation or 0
    local ttl = response.time_to_live
    if not is_between(ttl, 0, MAX_TIME_TO_LIVE_SECONDS) or ttl == 0 then
        return nil, "time to live " .. (ttl or "absent")
    end
    local now = clock()
    if response.unchanged then
        local held_epoch, held_generation = _M.held(registry)
        if epoch ~= held_epoch or generation ~= held_generation
           or generation == 0
        then
            return nil, format("unchanged generation %d of epoch %d, which "
                               .. "is not held", generation, epoch)
        end
    else
        local is_older = epoch < head.weights_epoch
                         or epoch == head.weights_epoch
                            and generation < head.weights_generation
        if is_older and now < head.weights_until then
            return nil, format("generation %d of epoch %d, older than what "
                               .. "is held", generation, epoch)
        end
        local ok, err = check(registry, response)
        if not ok then
            return nil, err
        end
        local bytes
        bytes, err = policy.encode_get_weights_response(response)
        if not bytes then
            return nil, err
        end
        ok, err = dict:set(KEY, bytes)
        if not ok then
            return nil, "failed to keep the weights: " .. err
        end
        head.weights_epoch = epoch
        head.weights_generation = generation
        head.weights_names = registry.names
        head.weights_stamp = head.weights_stamp + 1
    end
    head.weights_until = now + ttl
    head.refresh_seconds = response.refresh_interval or 0
    return true
end


-- What is in force now, in words, for a log line.
function _M.describe(registry)
    local head = registry.map.head
    local left = tonumber(head.weights_until) - clock()
    if left > 0 then
        return format("keeping generation %d for %d s",
                      tonumber(head.weights_generation), left)
    end
    if left > -ESTIMATES_SECONDS then
        return format("the static weights are in force, with the estimates of "
                      .. "generation %d", tonumber(head.weights_generation))
    end
    return "the static weights are in force"
end


local function refresh(registry, dict)
    local response
    if seen_age ~= GONE then
        local bytes = dict:get(KEY)
        response = bytes and policy.decode_get_weights_response(bytes)
        if response and not check(registry, response) then
            response = nil
        end
    end
    registry_module.apply(registry, response, seen_age == ALIVE)
    services.refresh(registry)
    ejection.refresh(clock())
end


-- Puts in force what should be. Called with each request: a few
-- comparisons when nothing changed.
function _M.follow(registry, dict, now)
    local head = registry.map.head
    local age = now < head.weights_until and ALIVE
                or now < head.weights_until + ESTIMATES_SECONDS and STALE
                or GONE
    if head.weights_stamp ~= seen_stamp or age ~= seen_age then
        seen_stamp, seen_age = tonumber(head.weights_stamp), age
        refresh(registry, dict)
    end
    follow_health(now)
end


return _M
