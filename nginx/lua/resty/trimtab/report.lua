-- Reads the shared counters: the snapshot behind the status pages, and the
-- ReportStats message made from it. Off the request path: it makes tables.
local json = require("resty.trimtab.json")
local libc = require("resty.trimtab.libc")
local mapping = require("resty.trimtab.mapping")
local picks = require("resty.trimtab.picks")

local array = json.array
local clock = libc.monotonic
local huge = math.huge
local max = math.max
local min = math.min
local tonumber = tonumber

local EJECTIONS = require("resty.trimtab.health").NAMES
local LEVELS = 32
local BUCKETS = 36
local CLASSES = 5

-- Sums over the rows, named as in the struct and in the proto.
local SUMS = {
    "in_flight", "requests", "failures", "in_bytes", "out_bytes",
    "response_time_seconds", "response_time_squared", "tardiness", "tardy",
    "unqueued", "unqueued_seconds", "unqueued_squared",
    "retries", "retries_refused",
}

-- Fields of a column with what is nought there; see PeerColumns and
-- AddressColumns.
local PEER_FIELDS = { in_flight_seconds = 0 }
for _, name in ipairs(SUMS) do
    PEER_FIELDS[name] = 0
end
local SERVER_FIELDS = {
    busy_seconds = 0, rate = 0, error_ratio = 0, down = false,
    ejections = 0, ejection = "", ejection_seconds = 0,
}

local _M = {}


-- The rows that were ever used; reading the others would only make the
-- kernel find pages for them.
local function used_rows(map)
    local rows = {}
    for i = 0, tonumber(map.head.rows) - 1 do
        if map.owners[i].claims > 0 then
            rows[#rows + 1] = mapping.row(map, i)
        end
    end
    return rows
end


local function zeros(count)
    local t = {}
    for i = 1, count do
        t[i] = 0
    end
    return t
end


-- in_flight_seconds of one row up to `now`. The writer stores the sum, the
-- gauge, then the time: read until the time stays.
local function integral(pair, now)
    for _ = 1, 3 do
        local last = tonumber(pair.last)
        local seconds = pair.in_flight_seconds
                        + pair.in_flight * max(0, now - last)
        if pair.last == last then
            return tonumber(seconds)
        end
    end
    return tonumber(pair.in_flight_seconds)
end


local function pair_sums(rows, q, now)
    local t = {
        responses = zeros(CLASSES),
        response_time_buckets = zeros(BUCKETS),
        in_flight_seconds = 0,
    }
    for _, name in ipairs(SUMS) do
        t[name] = 0
    end
    for _, row in ipairs(rows) do
        local pair = row.pairs[q]
        for _, name in ipairs(SUMS) do
            t[name] = t[name] + tonumber(pair[name])
        end
        for c = 1, CLASSES do
            t.responses[c] = t.responses[c] + tonumber(pair.responses[c - 1])
        end
        for b = 1, BUCKETS do
            t.response_time_buckets[b] = t.response_time_buckets[b]
                                         + tonumber(pair.buckets[b - 1])
        end
        t.in_flight_seconds = t.in_flight_seconds + integral(pair, now)
    end
    return t
end


local function address_sums(map, rows, i, now)
    local in_flight, work, claims = 0, 0, 0
    local completions, seconds = zeros(LEVELS), zeros(LEVELS)
    for _, row in ipairs(rows) do
        in_flight = in_flight + tonumber(row.in_flight[i])
        work = work + tonumber(row.work[i])
        claims = claims + tonumber(row.claims[i])
        local levels = row.levels[i]
        for n = 1, LEVELS do
            completions[n] = completions[n]
                             + tonumber(levels.completions_at[n - 1])
            seconds[n] = seconds[n] + tonumber(levels.seconds_at[n - 1])
        end
    end
    if in_flight > 0 then
        local level = min(in_flight, LEVELS)
        seconds[level] = seconds[level]
                         + max(0, now - tonumber(map.last[i]))
    end
    local busy = 0
    for n = 1, LEVELS do
        busy = busy + seconds[n]
    end
    return {
        in_flight = in_flight,
        work_seconds = work,
        claims = claims,
        busy_seconds = busy,
        completions_at = completions,
        seconds_at = seconds,
        rate = tonumber(map.rate[i]),
        error_ratio = tonumber(map.error[i]),
    }
end


local function class_sums(rows, u)
    local t = {
        in_flight = 0, unplaced = 0, unknown = 0, waiting = 0, refused = 0,
    }
    for _, row in ipairs(rows) do
        local class = row.classes[u]
        t.in_flight = t.in_flight + tonumber(class.in_flight)
        t.unplaced = t.unplaced + tonumber(class.unplaced)
        t.unknown = t.unknown + tonumber(class.unknown)
        t.waiting = t.waiting + tonumber(class.waiting)
        t.refused = t.refused + tonumber(class.refused)
    end
    return t
end


-- Why a server is ejected, and the seconds until it is tried again.
local function ejection_of(map, i, now)
    local health = map.health[i]
    local back = tonumber(health.back)
    return EJECTIONS[tonumber(health.reason)],
           now and health.reason > 0 and back < huge and max(0, back - now)
           or nil
end


local function upstream_table(registry, upstream, rows, addresses, now)
    local class = class_sums(rows, upstream.index)
    class.retries, class.retries_refused = 0, 0
    local peers = {}
    for p = 0, upstream.count - 1 do
        local t = pair_sums(rows, upstream.pair[p], now)
        local i = upstream.server[p]
        t.address = upstream.addresses[p + 1]
        t.weight = upstream.learned_weight[p]
        t.slow_start = upstream.weight[p] / upstream.learned_weight[p]
        t.affinity = upstream.affinity[p]
        t.configured_weight = upstream.configured_weight[p]
        t.static_weight = upstream.static_weight[p]
        t.effective_weight = upstream.weight[p] * registry.map.rate[i]
                             / upstream.affinity[p]
        t.drain = upstream.drain[p] ~= 0
        t.ejected = upstream.skip[p] > upstream.drain[p]
        t.ejection = ejection_of(registry.map, i)
        class.in_flight = class.in_flight + t.in_flight
        class.retries = class.retries + t.retries
        class.retries_refused = class.retries_refused + t.retries_refused
        peers[p + 1] = t
    end
    return {
        upstream = upstream.name,
        waiting = class.waiting,
        refused = class.refused,
        retries = class.retries,
        retries_refused = class.retries_refused,
        hold = upstream.hold,
        is_holding = upstream.is_holding,
        in_flight = class.in_flight,
        unplaced = class.unplaced,
        unknown = class.unknown,
        priority = upstream.priority,
        deadline_seconds = upstream.deadline > 0 and upstream.deadline or nil,
        service_time_seconds = upstream.service,
        peers = peers,
        picks = array(picks.recent(rows, upstream, addresses, now)),
    }
end


local function worker_tables(map)
    local workers = {}
    for i = 0, tonumber(map.head.rows) - 1 do
        local owner = map.owners[i]
        local pid = tonumber(owner.pid)
        if pid ~= 0 then
            workers[#workers + 1] = {
                pid = pid,
                id = tonumber(owner.id),
                generation = tonumber(owner.generation),
                row = i,
                waiting = tonumber(mapping.row(map, i).room.waiting),
                port = tonumber(owner.port),
                leader = map.head.leader == pid,
            }
        end
    end
    return workers
end


-- Everything that the hook knows, as a plain table for JSON. Fields that the
-- proto has too carry its names, units and meanings (spans in seconds, with
-- the unit in the name).
--
-- {
--   instance = "name", balance = true,
--   start = 1700000000000,            -- ms; the life of the counters
--   clock_seconds = 12345.678,        -- monotonic, when they were read
--   sequence = 41,                    -- of the last report
--   configurations = 3,               -- loaded since start (1 + reloads)
--   interval_seconds = 1.0, bridge = "127.0.0.1:18081",
--   mean_service_seconds = 0.012,     -- over classes; scale of estimates
--   weights = {
--     source = "learned" | "static",  -- what is in use here and now
--     epoch = 0, generation = 0,      -- of the ones held; 0 when none
--     expires_in_seconds = 9.2,       -- absent when static
--     policy_server = "ok" | "unknown" | "failing",   -- the last exchange
--   },
--   workers = { { pid =, id =, generation =, row =, leader = bool,
--                 waiting =,              -- requests held in it
--                 port = } },             -- where it is woken; 0: nowhere
--   connections = { active =, reading =, writing =, waiting = } or absent,
--   upstreams = { {
--     upstream = "compose_backend",
--     waiting = 0, in_flight = 3,
--     hold = "auto", is_holding = true,        -- whether requests may wait
--     refused = 0,                    -- requests that had to wait too long
--     retries = 0,                    -- tries that were not the first
--     retries_refused = 0,            -- the same, beyond the retry budget
--     unplaced = 0,                   -- requests placed by nginx's own
--                                     -- balancer (fail-open, or by config)
--     unknown = 0,                    -- tries at addresses not configured
--     priority = 3,
--     deadline_seconds = 0.15,        -- absent when unknown
--     service_time_seconds = 0.012,   -- v_j in use
--     peers = { {
--       address = "127.0.0.1:9001",
--       in_flight, requests, responses[5], failures, in_bytes, out_bytes,
--       response_time_seconds, response_time_squared, tardiness, tardy,
--       unqueued, unqueued_seconds, unqueued_squared,
--       retries, retries_refused,
--       response_time_buckets[36], in_flight_seconds,     -- as PeerStats
--       configured_weight = 1,
--       static_weight = 1,            -- the same, mean 1 in the upstream
--       weight = 1, affinity = 1,     -- W_ij, a_ij in use
--       effective_weight = 1.9,       -- weight * rate / affinity: the share
--                                     -- that it attracts at equal load
--       slow_start = 1,               -- share of its weight that it has
--       drain = false,
--       ejected = false,              -- left out here: false where all are,
--                                     -- or more than eject_max_ratio
--       ejection = "stall",           -- absent: not ejected; as below
--     } },
--     picks = { {                     -- the newest first; a sample
--       address = "127.0.0.1:9001",   -- the peer picked
--       age_seconds = 0.4,
--       waited_seconds = 0.002,       -- in nginx, for room there
--       tries = 0,                    -- of the request before this one
--       candidates = { { address, score_seconds, in_flight } },
--                                     -- at most 8, in_flight before it; the
--                                     -- score with the claims of requests
--                                     -- that were before it in the room;
--                                     -- none: it probed an ejected peer
--     } },
--   } },
--   addresses = { {
--     address = "127.0.0.1:9001", in_flight = 3,
--     work_seconds = 0.036,           -- of what is in flight, v_j * a_ij each
--     claims = 0,                     -- with several workers: waiting requests
--                                     -- whose turn is near, for this server
--     slots = 2,                      -- 0: unknown
--     sharing = false,                -- whether all in flight share them
--     limit = 2,                      -- in flight before others wait in
--                                     -- nginx; absent: no limit
--     busy_seconds, completions_at[32], seconds_at[32], rate, error_ratio,
--     down,                           -- as AddressStats
--     ejection = "failures" | "errors" | "stall" | "check",   -- why; absent
--                                     -- when it is not ejected
--     ejection_seconds = 0.8,         -- until a request tries it again;
--                                     -- absent where only a check does
--     ejections = 0,                  -- so far
--   } },
-- }
function _M.snapshot(registry)
    local map, settings = registry.map, registry.settings
    local head = map.head
    local now = clock()
    local rows = used_rows(map)
    local upstreams, addresses = {}, {}
    local is_open, names = {}, {}
    for s, i in ipairs(registry.servers) do
        names[i] = registry.server_addresses[s]
    end
    for u, upstream in ipairs(registry.upstreams) do
        upstreams[u] = upstream_table(registry, upstream, rows, names, now)
        for p = 0, upstream.count - 1 do
            if upstream.skip[p] == 0 then
                is_open[upstream.server[p]] = true
            end
        end
    end
    for s, i in ipairs(registry.servers) do
        local t = address_sums(map, rows, i, now)
        t.address = registry.server_addresses[s]
        t.slots = registry.slots[i]
        t.sharing = registry.sharing[i] ~= 0
        t.limit = registry.limit[i] < huge and registry.limit[i] or nil
        t.down = not is_open[i]
        t.ejection, t.ejection_seconds = ejection_of(map, i, now)
        t.ejections = tonumber(map.health[i].ejections)
        addresses[s] = t
    end
    local is_learned = registry.is_learned and now < head.weights_until
    return {
        instance = settings.instance,
        balance = settings.balance,
        start = tonumber(head.start),
        clock_seconds = now,
        sequence = tonumber(head.sequence),
        configurations = tonumber(head.generation),
        interval_seconds = settings.interval_seconds,
        bridge = settings.bridge,
        mean_service_seconds = tonumber(head.mean_service),
        weights = {
            source = is_learned and "learned" or "static",
            epoch = tonumber(head.weights_epoch),
            generation = tonumber(head.weights_generation),
            expires_in_seconds = is_learned
                                 and tonumber(head.weights_until) - now
                                 or nil,
            policy_server = head.pull_state == 0 and "unknown"
                            or head.pull_state > 0 and "ok" or "failing",
        },
        workers = worker_tables(map),
        connections = libc.connections(),
        upstreams = upstreams,
        addresses = addresses,
    }
end


-- The numbers from `first` (nil: from where one is not 0) of the lists that
-- the entries have under `name`: all first ones, then all second ones. Returns
-- the list, without what is 0 for all at the end, and which came first, from
-- 0; nil when nothing is left.
local function turned(entries, name, width, first)
    local last = 0
    for c = 1, width do
        for _, entry in ipairs(entries) do
            if entry[name][c] ~= 0 then
                first = first or c
                last = c
                break
            end
        end
    end
    if last == 0 then
        return nil
    end
    local list, n = {}, 0
    for c = first, last do
        for _, entry in ipairs(entries) do
            n = n + 1
            list[n] = entry[name][c]
        end
    end
    return list, first - 1
end


-- The entries (peers or servers) by column: a list of each field that is not
-- nought for all.
local function columns(entries, fields)
    local addresses = {}
    for i, entry in ipairs(entries) do
        addresses[i] = entry.address
    end
    local t = { addresses = { addresses = addresses } }
    for name, nought in pairs(fields) do
        local list, is_needed = {}, false
        for i, entry in ipairs(entries) do
            local value = entry[name] or nought
            list[i] = value
            is_needed = is_needed or value ~= nought
        end
        t[name] = is_needed and list or nil
    end
    return t
end


local function by_column(upstreams)
    local t = {}
    for u, upstream in ipairs(upstreams) do
        local peers = upstream.peers
        local own = columns(peers, PEER_FIELDS)
        own.responses = turned(peers, "responses", CLASSES, 1)
        own.response_time_buckets, own.first_bucket =
            turned(peers, "response_time_buckets", BUCKETS)
        t[u] = {
            upstream = upstream.upstream,
            waiting = upstream.waiting,
            peer_columns = own,
        }
    end
    return t
end


local function servers_by_column(addresses)
    local t = columns(addresses, SERVER_FIELDS)
    t.completions_at = turned(addresses, "completions_at", LEVELS, 1)
    t.seconds_at = turned(addresses, "seconds_at", LEVELS, 1)
    return t
end


-- The ReportStatsRequest that says what a snapshot shows; by column for a
-- policy server that reads them, and with what is wanted of it.
function _M.message(snapshot, sequence, reads_columns, wanted)
    local t = {
        instance = snapshot.instance,
        start = snapshot.start,
        sequence = sequence,
        clock_seconds = snapshot.clock_seconds,
        -- That of the weights in use: none where nginx's own balancer picks.
        generation = snapshot.balance
                     and snapshot.weights.source == "learned"
                     and snapshot.weights.generation or 0,
        connections = snapshot.connections,
        weights_wanted = wanted,
    }
    if reads_columns then
        t.upstreams = by_column(snapshot.upstreams)
        t.address_columns = servers_by_column(snapshot.addresses)
    else
        t.upstreams = snapshot.upstreams
        t.addresses = snapshot.addresses
    end
    return t
end


return _M
