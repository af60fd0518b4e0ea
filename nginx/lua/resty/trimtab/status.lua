-- The status pages: a snapshot of the counters as JSON.
--
-- document() is for Trimtab's own tools: the snapshot (resty.trimtab.report
-- says what is in it) and where it was taken. vts() has the shape that
-- nginx-module-vts gives /status/format/json, so that what reads that module
-- reads Trimtab. Both only turn tables into tables; status() and status_vts()
-- are the content handlers.
--
-- Where the VTS document differs in meaning:
-- * requestMsecCounter and responseMsecCounter are the same sum of response
--   times: waiting in the balancer counts, sending to the client does not.
-- * requestMsec and responseMsec are means since the start, and the lists
--   of the last samples are empty: differences of counters say more.
-- * weight is the configured one, as always; the learned W_ij is
--   learnedWeight, and the share that it comes to effectiveWeight.
-- * down is true for a peer that is drained or ejected; ejection says why.
-- * rate, slots and errorRatio of a peer are those of its address, in all
--   upstreams; "trimtab" has which weights are in use, and who waits by class.
-- * there are no serverZones: what passes no upstream is not counted.
local ffi = require("ffi")
local json = require("resty.trimtab.json")

local C = ffi.C
local array = json.array
local floor = math.floor
local ipairs = ipairs
local max = math.max
local pairs = pairs
local pcall = pcall
local tonumber = tonumber

ffi.cdef[[
unsigned long *trimtab_stat_accepted __asm__("ngx_stat_accepted");
unsigned long *trimtab_stat_handled __asm__("ngx_stat_handled");
unsigned long *trimtab_stat_requests __asm__("ngx_stat_requests");
]]

-- Of the counters' 36 bounds, 0.5 ms * 2^(b/2), those in whole milliseconds:
-- readers in typed languages take nothing else. b = 2, 4, …, 34.
local FIRST_BOUND, LAST_BOUND = 2, 34
-- What nginx assumes of a server line without parameters, as ours are.
local MAX_FAILS = 1
local FAIL_TIMEOUT_SECONDS = 10
-- Counters are doubles, exact up to 2^53, and do not wrap.
local OVER_COUNTS = {
    maxIntegerSize = 2 ^ 53 - 1,
    requestCounter = 0, inBytes = 0, outBytes = 0,
    ["1xx"] = 0, ["2xx"] = 0, ["3xx"] = 0, ["4xx"] = 0, ["5xx"] = 0,
    requestMsecCounter = 0, responseMsecCounter = 0,
}

local _M = {}


local function whole(value)
    return max(0, floor(value + 0.5))
end


-- Counts up to each bound, as VTS has them, from counts between bounds.
local function buckets(counts)
    local bounds, sums = array({}), array({})
    local sum = 0
    for b = 0, LAST_BOUND do
        sum = sum + (counts[b + 1] or 0)
        if b >= FIRST_BOUND and b % 2 == 0 then
            bounds[#bounds + 1] = 2 ^ (b / 2 - 1)
            sums[#sums + 1] = sum
        end
    end
    return { msecs = bounds, counters = sums }
end


local function no_samples()
    return { times = array({}), msecs = array({}) }
end


local function vts_peer(peer, address)
    local responses = {}
    for class = 1, 5 do
        responses[class .. "xx"] = peer.responses[class] or 0
    end
    local sum = whole(peer.response_time_seconds * 1000)
    local mean = peer.requests > 0 and whole(sum / peer.requests) or 0
    return {
        server = peer.address,
        requestCounter = peer.requests,
        inBytes = peer.in_bytes,
        outBytes = peer.out_bytes,
        responses = responses,
        requestMsecCounter = sum,
        requestMsec = mean,
        requestMsecs = no_samples(),
        requestBuckets = buckets(peer.response_time_buckets),
        responseMsecCounter = sum,
        responseMsec = mean,
        responseMsecs = no_samples(),
        responseBuckets = buckets(peer.response_time_buckets),
        weight = max(1, whole(peer.configured_weight)),
        maxFails = MAX_FAILS,
        failTimeout = FAIL_TIMEOUT_SECONDS,
        backup = false,
        down = peer.drain or peer.ejected or false,
        overCounts = OVER_COUNTS,
        -- Trimtab's own.
        inFlight = whole(peer.in_flight),
        learnedWeight = peer.weight,
        effectiveWeight = peer.effective_weight,
        rate = address.rate,
        slots = address.slots,
        errorRatio = address.error_ratio,
        ejection = peer.ejection or "",
    }
end


-- What nginx-module-vts has no place for.
local function own(snapshot)
    local waiting = {}
    for _, upstream in ipairs(snapshot.upstreams) do
        waiting[upstream.upstream] = upstream.waiting
    end
    local weights = snapshot.weights
    return {
        source = weights.source,
        epoch = weights.epoch,
        generation = weights.generation,
        waiting = waiting,
    }
end


-- The document of nginx-module-vts. `page` says where the snapshot was taken:
--     version, nginx_version, host_name, now_seconds (wall clock)
--     connections   the snapshot's four, and accepted, handled, requests
--     zone          name, size_bytes, free_bytes of the shared dict
function _M.vts(snapshot, page)
    local zones, pair_count, addresses = {}, 0, {}
    for _, address in ipairs(snapshot.addresses) do
        addresses[address.address] = address
    end
    for _, upstream in ipairs(snapshot.upstreams) do
        local peers = array({})
        for p, peer in ipairs(upstream.peers) do
            peers[p] = vts_peer(peer, addresses[peer.address])
        end
        pair_count = pair_count + #peers
        zones[upstream.upstream] = peers
    end
    return {
        hostName = page.host_name,
        moduleVersion = "trimtab-" .. page.version,
        nginxVersion = page.nginx_version,
        loadMsec = snapshot.start,
        nowMsec = whole(page.now_seconds * 1000),
        connections = page.connections,
        sharedZones = {
            name = page.zone.name,
            maxSize = page.zone.size_bytes,
            usedSize = page.zone.size_bytes - page.zone.free_bytes,
            usedNode = pair_count,
            freeSize = page.zone.free_bytes,
        },
        serverZones = {},
        upstreamZones = zones,
        trimtab = own(snapshot),
    }
end


-- The snapshot itself, and where it was taken. `page` as for vts().
function _M.document(snapshot, page)
    local t = {
        format = 1,
        version = page.version,
        nginx_version = page.nginx_version,
        host_name = page.host_name,
        now_seconds = page.now_seconds,
    }
    for key, value in pairs(snapshot) do
        t[key] = value
    end
    t.workers = array(t.workers)
    return t
end


local has_totals = pcall(function()
    return C.trimtab_stat_accepted
end)


local function connections(now)
    local t = {
        active = 0, reading = 0, writing = 0, waiting = 0,
        accepted = 0, handled = 0, requests = 0,
    }
    for name, value in pairs(now or {}) do
        t[name] = value
    end
    if now and has_totals then
        t.accepted = tonumber(C.trimtab_stat_accepted[0])
        t.handled = tonumber(C.trimtab_stat_handled[0])
        t.requests = tonumber(C.trimtab_stat_requests[0])
    end
    return t
end


local function serve(make, take_snapshot, version)
    local var = ngx.var
    local dict = ngx.shared.trimtab
    local snapshot = take_snapshot()
    ngx.header["Content-Type"] = "application/json"
    ngx.header["Cache-Control"] = "no-store"
    ngx.print(json.encode(make(snapshot, {
        version = version,
        nginx_version = var.nginx_version,
        host_name = var.hostname,
        now_seconds = ngx.now(),
        connections = connections(snapshot.connections),
        zone = {
            name = "trimtab",
            size_bytes = dict:capacity(),
            free_bytes = dict:free_space(),
        },
    })))
end


-- Content handler of /trimtab/status.
function _M.status(take_snapshot, version)
    serve(_M.document, take_snapshot, version)
end


-- Content handler of /status/format/json.
function _M.status_vts(take_snapshot, version)
    serve(_M.vts, take_snapshot, version)
end


return _M
