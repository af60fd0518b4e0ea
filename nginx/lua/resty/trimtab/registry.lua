-- The upstreams and servers of this configuration, as the arrays that the
-- rule reads, and the weights in force in them.
--
-- An upstream:
--     name, index (in the mapping), priority, count, addresses (from 1),
--     position (address -> p), can_pick (all addresses are literal)
--     server[p], pair[p]      indexes in the mapping, from 0
--     configured_weight[p]    as in the settings
--     static_weight[p]        the same, mean 1 in the upstream
--     learned_weight[p], drain[p]         as the policy server gave them
--     weight[p], affinity[p], skip[p], deadline (0: unknown)   in force: see
--                             ejection.lua for what is between
--     service                 v_j in force, seconds
--     learned_service         v_j as the policy server gave it, or nil
--     hold, max_waiting, max_wait_seconds     as in the settings
--     is_holding              whether its requests may wait: see limits.lua
--     and what room.lua keeps in a class
-- The registry has beside them `servers` (indexes of all servers, from 1),
-- `server_addresses`, `by_name`, and, per server index, `address_of`, `checks`
-- (the upstream whose check is made there, or nil), `slots`, `sharing` (1: all
-- in flight share them; the configuration's word or else the policy server's),
-- `is_discipline_given`, `prior` and
-- `limit` (requests in flight before others wait: see limits.lua).
--
-- Weights come from the policy server, or are the static ones: the same code
-- puts either in force, so that nothing of the one is left under the other.
local ffi = require("ffi")
local names_of = require("resty.trimtab.names")

local address_index = names_of.address_index
local concat = table.concat
local ipairs = ipairs
local new = ffi.new
local pair_index = names_of.pair_index
local pairs = pairs
local tonumber = tonumber
local upstream_index = names_of.upstream_index

-- A service time before the first one is seen. Only the ratio between
-- classes matters, and then all are alike.
local DEFAULT_SERVICE_SECONDS = 0.01

local _M = { DEFAULT_SERVICE_SECONDS = DEFAULT_SERVICE_SECONDS }


local function new_upstream(map, settings)
    local count = #settings.peers
    local upstream = {
        name = settings.name,
        index = upstream_index(map, settings.name),
        priority = settings.priority,
        hold = settings.hold,
        max_waiting = settings.max_waiting,
        max_wait_seconds = settings.max_wait_seconds,
        eject_failures = settings.eject_failures,
        eject_error_ratio = settings.eject_error_ratio,
        eject_stall_seconds = settings.eject_stall_seconds,
        eject_seconds = settings.eject_seconds,
        eject_max_seconds = settings.eject_max_seconds,
        eject_max_ratio = settings.eject_max_ratio,
        slow_start_seconds = settings.slow_start_seconds,
        retry_non_idempotent = settings.retry_non_idempotent,
        retry_stalled = settings.retry_stalled,
        retry_ratio = settings.retry_ratio,
        retries_per_second = settings.retries_per_second,
        check_path = settings.check_path,
        check_interval_seconds = settings.check_interval_seconds,
        check_timeout_seconds = settings.check_timeout_seconds,
        check_failures = settings.check_failures,
        check_successes = settings.check_successes,
        tries = settings.tries,
        timeout_seconds = settings.timeout_seconds,
        try_timeout_seconds = settings.try_timeout_seconds,
        is_holding = false,
        probe_at = math.huge,
        static_deadline = settings.deadline_seconds or 0,
        deadline = 0,
        service = DEFAULT_SERVICE_SECONDS,
        count = count,
        can_pick = true,
        addresses = {},
        position = {},
        server = new("int[?]", count),
        pair = new("int[?]", count),
        configured_weight = new("double[?]", count),
        static_weight = new("double[?]", count),
        weight = new("double[?]", count),
        affinity = new("double[?]", count),
        skip = new("double[?]", count),
        learned_weight = new("double[?]", count),
        drain = new("double[?]", count),
        was_drained = new("double[?]", count),
    }
    local sum = 0
    for _, peer in ipairs(settings.peers) do
        sum = sum + peer.weight
    end
    for p, peer in ipairs(settings.peers) do
        local address = peer.address
        local server = address_index(map, address)
        upstream.addresses[p] = address
        upstream.position[address] = p - 1
        upstream.server[p - 1] = server
        upstream.pair[p - 1] = pair_index(map, upstream.index, server)
        upstream.configured_weight[p - 1] = peer.weight
        upstream.static_weight[p - 1] = peer.weight * count / sum
        upstream.can_pick = upstream.can_pick and peer.is_literal
    end
    return upstream
end


-- The registry of these settings, its names entered in the mapping. Master
-- only (init_by_lua). Raises when the mapping has no room.
function _M.new(map, settings)
    local capacity = tonumber(map.head.address_capacity)
    local registry = {
        map = map,
        settings = settings,
        upstreams = {},
        by_name = {},
        servers = {},
        server_addresses = {},
        address_of = {},
        checks = {},
        static_slots = new("double[?]", capacity),
        slots = new("double[?]", capacity),
        sharing = new("double[?]", capacity),
        is_discipline_given = {},
        prior = new("double[?]", capacity),
        limit = new("double[?]", capacity),
    }
    local seen, names = {}, {}
    for u, s in ipairs(settings.upstreams) do
        local upstream = new_upstream(map, s)
        registry.upstreams[u] = upstream
        registry.by_name[s.name] = upstream
        names[#names + 1] = s.name
        for p, peer in ipairs(s.peers) do
            local i = upstream.server[p - 1]
            if not seen[i] then
                seen[i] = true
                registry.servers[#registry.servers + 1] = i
                registry.server_addresses[#registry.servers] = peer.address
                registry.address_of[i] = peer.address
            end
            if upstream.check_path and settings.balance and peer.is_literal
            then
                registry.checks[i] = registry.checks[i] or upstream
            end
            if peer.slots > 0 then
                registry.static_slots[i] = peer.slots
            end
            registry.sharing[i] = peer.is_sharing and 1 or 0
            registry.is_discipline_given[i] = peer.is_discipline_given
            names[#names + 1] = peer.address
        end
    end
    -- Tells a set of names from another, so that weights for other names
    -- are not taken for these.
    registry.names = ngx.crc32_long(concat(names, "\n"))
    _M.apply(registry, nil)
    return registry
end


local function apply_peer(registry, upstream, peer, is_alive)
    local p = upstream.position[peer.address]
    if not p then
        return
    end
    local i = upstream.server[p]
    if is_alive then
        upstream.learned_weight[p] = peer.weight
    end
    upstream.affinity[p] = peer.affinity
    upstream.drain[p] = peer.drain and 1 or 0
    registry.prior[i] = peer.rate
    if registry.static_slots[i] == 0 then
        registry.slots[i] = peer.slots
    end
    if not registry.is_discipline_given[i] then
        registry.sharing[i] = peer.sharing and 1 or 0
    end
end


-- Puts weights in force: a checked GetWeightsResponse, or nil for the static
-- ones. Peers and upstreams that it does not name keep the static ones. Of one
-- that is not alive any more only the weights are not used: what it says of
-- the servers is still the best that is known. What is ejected or starts
-- slowly comes on top: see ejection.refresh.
function _M.apply(registry, response, is_alive)
    for _, i in ipairs(registry.servers) do
        registry.slots[i] = registry.static_slots[i]
        registry.prior[i] = 1
        if not registry.is_discipline_given[i] then
            registry.sharing[i] = 0
        end
    end
    for _, upstream in pairs(registry.upstreams) do
        upstream.deadline = upstream.static_deadline
        upstream.learned_service = nil
        for p = 0, upstream.count - 1 do
            upstream.learned_weight[p] = upstream.static_weight[p]
            upstream.affinity[p] = 1
            upstream.drain[p] = 0
        end
    end
    registry.is_learned = response ~= nil and is_alive
    if not response then
        return
    end
    for _, learned in ipairs(response.upstreams) do
        local upstream = registry.by_name[learned.upstream]
        if upstream then
            upstream.deadline = learned.deadline or upstream.static_deadline
            upstream.learned_service = learned.service_time
            for _, peer in ipairs(learned.peers) do
                apply_peer(registry, upstream, peer, is_alive)
            end
        end
    end
end


return _M
