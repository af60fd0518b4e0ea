-- The memory that all workers share: its layout, its creation, and taking it
-- over when the configuration is reloaded.
--
-- One anonymous mapping is made in init_by_lua, before the workers fork, and
-- lives as long as the master. Its address is kept in the shared dict: a
-- reload keeps the dict, so the next configuration finds the mapping, and new
-- workers see what old ones still have in flight. nginx -t, a binary upgrade
-- or a changed dict size make one of their own.
--
-- Parts, all of doubles (exact to 2^53, and one store is never torn):
--     head       one trimtab_head
--     names      of upstreams, addresses and pairs: see names.lua
--     servers    a struct of arrays per address that all workers write
--     services   per upstream, written by all
--     rows       per worker, written by that worker alone: see counters.lua
--
-- What all workers write is estimates only. Two workers that change the same
-- estimate within the same few nanoseconds lose one of two samples: benign,
-- as an estimate forgets samples anyway, no double is ever half written, and
-- nothing is derived from it that must be exact. Counters are exact, because
-- each has one writer.
local ffi = require("ffi")
local libc = require("resty.trimtab.libc")

local cast = ffi.cast
local floor = math.floor
local format = string.format
local max = math.max
local sizeof = ffi.sizeof
local tonumber = tonumber

ffi.cdef[[
typedef struct {
    double magic, layout;
    double start;                  /* wall clock of creation, ms */
    double generation;             /* configurations loaded so far */
    double stride;                 /* rows a generation */
    double rows, address_capacity, pair_capacity;
    double upstreams, addresses, pairs;      /* in use */
    double rows_stamp;             /* rises when a row changes owner */
    double weights_stamp;          /* rises when the weights change */
    double weights_until;          /* monotonic seconds */
    double weights_epoch, weights_generation, weights_names;
    double refresh_seconds;
    double pull_state, push_state; /* 1 ok, -1 failing, 0 not tried */
    double leader, leader_beat;    /* pid, monotonic seconds */
    double sequence;               /* of the last report */
    double touched;                /* when idle servers were last carried on */
    double mean_service;
    double secret;                 /* who knows it may say where it listens */
    double health_stamp;           /* rises when a server goes or comes */
} trimtab_head;

typedef struct { unsigned char length; char text[255]; } trimtab_name;
typedef struct { double upstream, address; } trimtab_pair_name;

/* The mean service time of a class, what it is taken for, and how long its
   answers may take: see services.lua and rescue.lua. */
typedef struct {
    double count, mean_seconds, in_use;
    double answers, longest, longest_head;
} trimtab_service;

/* Whether a server is used: see health.lua. */
typedef struct {
    double reason, since, back, backoff, streak, asked, pace, joined;
    double ejections;
    double configuration;          /* the last one that had this server */
} trimtab_health;

typedef struct {
    double pid, generation, id;
    double claims;                 /* workers that the row has had */
    double port;                   /* where its worker is woken */
} trimtab_owner;

/* One class at one peer, by one worker; proto PeerStats. */
typedef struct {
    double in_flight, last, in_flight_seconds;
    double requests, responses[5], failures, in_bytes, out_bytes;
    double response_time_seconds, response_time_squared;
    double tardiness, tardy;
    double unqueued, unqueued_seconds, unqueued_squared;
    double retries, retries_refused;
    double buckets[36];
} trimtab_pair;

/* One server, by one worker; proto AddressStats. */
typedef struct {
    double seconds_at[32], completions_at[32];
} trimtab_levels;

/* One class, by one worker. */
typedef struct {
    double in_flight, unplaced, unknown, waiting, refused;
} trimtab_class;

/* One pick of a class, and what the rule saw of its candidates. */
typedef struct { double server, score, in_flight; } trimtab_candidate;
typedef struct {
    double at_seconds, waited_seconds, tries, server, candidates;
    trimtab_candidate candidate[8];
} trimtab_pick;

/* The last picks of one class, by one worker: see picks.lua. */
typedef struct {
    double count, until_seconds;
    trimtab_pick kept[16];
} trimtab_picks;

/* The waiting room of one worker. */
typedef struct { double waiting; } trimtab_room;
]]

local MAGIC = 0x7472696d
-- Rises with every change of the structs above, and of what is in them.
local LAYOUT = 8
local PAGE_BYTES = 4096
-- The proto's bound.
local MAX_UPSTREAMS = 256
-- Four generations of workers count side by side; an older one that still
-- drains keeps its rows, and the newcomers look for others.
local GENERATIONS = 4
-- Room to grow over reloads, so that nginx need not be restarted.
local GROWTH = 4
local MIN_ADDRESSES = 256
local MIN_PAIRS = 1024
local MIN_WORKERS = 16
-- In the shared dict.
local KEY = "mapping"

local _M = {
    GENERATIONS = GENERATIONS,
    MAX_UPSTREAMS = MAX_UPSTREAMS,
    -- As in the structs.
    PICKS = 16,
    CANDIDATES = 8,
}


local function aligned(bytes)
    return floor((bytes + PAGE_BYTES - 1) / PAGE_BYTES) * PAGE_BYTES
end


-- Where each part begins, from the capacities, and the bytes in all.
local function offsets(addresses, pairs_, rows)
    local at = { head = 0 }
    local bytes = aligned(sizeof("trimtab_head"))
    local function part(name, size)
        at[name] = bytes
        bytes = bytes + aligned(size)
    end
    part("upstream_names", MAX_UPSTREAMS * sizeof("trimtab_name"))
    part("address_names", addresses * sizeof("trimtab_name"))
    part("pair_names", pairs_ * sizeof("trimtab_pair_name"))
    part("done", addresses * 8)
    part("busy", addresses * 8)
    part("last", addresses * 8)
    part("rate", addresses * 8)
    part("error", addresses * 8)
    part("health", addresses * sizeof("trimtab_health"))
    part("services", MAX_UPSTREAMS * sizeof("trimtab_service"))
    part("owners", rows * sizeof("trimtab_owner"))
    part("rows", 0)
    -- Within a row, which begins on a page of its own: no two workers write
    -- to the same cache line.
    local row = {}
    local row_bytes = 0
    local function row_part(name, size)
        row[name] = row_bytes
        row_bytes = row_bytes + size
    end
    row_part("in_flight", addresses * 8)
    row_part("work", addresses * 8)
    row_part("room", sizeof("trimtab_room"))
    row_part("claims", addresses * 8)
    row_part("claimed", addresses * 8)
    row_part("due", addresses * 8)
    row_part("probes", addresses * 8)
    row_part("value", addresses * 8)
    row_part("classes", MAX_UPSTREAMS * sizeof("trimtab_class"))
    row_part("pairs", pairs_ * sizeof("trimtab_pair"))
    row_part("levels", addresses * sizeof("trimtab_levels"))
    row_part("picks", MAX_UPSTREAMS * sizeof("trimtab_picks"))
    at.row = row
    at.row_bytes = aligned(row_bytes)
    at.bytes = bytes + rows * at.row_bytes
    return at
end


-- The mapping as a table of typed pointers.
local function open(base)
    local head = cast("trimtab_head *", base)
    local at = offsets(tonumber(head.address_capacity),
                       tonumber(head.pair_capacity), tonumber(head.rows))
    return {
        base = base,
        at = at,
        head = head,
        upstream_names = cast("trimtab_name *", base + at.upstream_names),
        address_names = cast("trimtab_name *", base + at.address_names),
        pair_names = cast("trimtab_pair_name *", base + at.pair_names),
        done = cast("double *", base + at.done),
        busy = cast("double *", base + at.busy),
        last = cast("double *", base + at.last),
        rate = cast("double *", base + at.rate),
        error = cast("double *", base + at.error),
        health = cast("trimtab_health *", base + at.health),
        services = cast("trimtab_service *", base + at.services),
        owners = cast("trimtab_owner *", base + at.owners),
    }
end


-- Typed pointers into one row.
function _M.row(map, index)
    local at = map.at
    local base = map.base + at.rows + index * at.row_bytes
    return {
        index = index,
        owner = map.owners + index,
        in_flight = cast("double *", base + at.row.in_flight),
        work = cast("double *", base + at.row.work),
        room = cast("trimtab_room *", base + at.row.room),
        claims = cast("double *", base + at.row.claims),
        claimed = cast("double *", base + at.row.claimed),
        due = cast("double *", base + at.row.due),
        probes = cast("double *", base + at.row.probes),
        value = cast("double *", base + at.row.value),
        classes = cast("trimtab_class *", base + at.row.classes),
        pairs = cast("trimtab_pair *", base + at.row.pairs),
        levels = cast("trimtab_levels *", base + at.row.levels),
        picks = cast("trimtab_picks *", base + at.row.picks),
    }
end


-- A mapping with room for a multiple of what the configuration names.
function _M.create(addresses, pairs_, workers, wall_seconds)
    local stride = max(MIN_WORKERS, 2 * workers)
    local address_capacity = max(MIN_ADDRESSES, GROWTH * addresses)
    local pair_capacity = max(MIN_PAIRS, GROWTH * pairs_)
    local rows = GENERATIONS * stride
    local at = offsets(address_capacity, pair_capacity, rows)
    local base, err = libc.map_shared(at.bytes)
    if not base then
        return nil, err
    end
    local head = cast("trimtab_head *", base)
    head.magic = MAGIC
    head.layout = LAYOUT
    head.start = floor(wall_seconds * 1000)
    head.stride = stride
    head.rows = rows
    head.address_capacity = address_capacity
    head.pair_capacity = pair_capacity
    head.secret = libc.random()
    return open(base)
end


-- The mapping that an earlier configuration of this master left, or nil and
-- why not.
local function find(dict)
    local address = dict:get(KEY)
    if not address then
        return nil, "none yet"
    end
    if not libc.is_mapped(address) then
        return nil, "gone"
    end
    local base = cast("char *", cast("uintptr_t", address))
    local head = cast("trimtab_head *", base)
    if head.magic ~= MAGIC or head.layout ~= LAYOUT then
        return nil, "of another version of Trimtab"
    end
    return open(base)
end


-- The shared mapping: taken over, or made. Returns map, is_new; nil, err.
function _M.attach(dict, addresses, pairs_, workers, wall_seconds)
    local map = find(dict)
    if map then
        if workers > map.head.stride then
            return nil, format("the counters have rows for %d workers, the "
                               .. "configuration has %d: restart nginx",
                               tonumber(map.head.stride), workers)
        end
        return map, false
    end
    local err
    map, err = _M.create(addresses, pairs_, workers, wall_seconds)
    if not map then
        return nil, err
    end
    local ok
    ok, err = dict:set(KEY, tonumber(cast("uintptr_t", map.base)))
    if not ok then
        return nil, "failed to keep the mapping's address: " .. err
    end
    return map, true
end


-- Runs `work` while no other process does, as far as that can be waited for:
-- a holder that was killed is outlived after LOCK_SECONDS. Never in the
-- request path.
local LOCK_SECONDS = 0.2
local LOCK_POLL_SECONDS = 0.001

function _M.locked(dict, work)
    for _ = 1, 2 * LOCK_SECONDS / LOCK_POLL_SECONDS do
        if dict:add("lock", true, LOCK_SECONDS) then
            break
        end
        libc.sleep(LOCK_POLL_SECONDS)
    end
    work()
    dict:delete("lock")
end


return _M
