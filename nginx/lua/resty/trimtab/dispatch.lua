-- The balancer phase: picks a peer for the next try, and counts it.
local base = require("resty.core.base")
local counters = require("resty.trimtab.counters")
local ejection = require("resty.trimtab.ejection")
local ffi = require("ffi")
local libc = require("resty.trimtab.libc")
local ngx_balancer = require("ngx.balancer")
local passes = require("resty.trimtab.passes")
local picks = require("resty.trimtab.picks")
local requests = require("resty.trimtab.requests")
local retries = require("resty.trimtab.retries")
local rule = require("resty.trimtab.rule")
local segment = require("resty.trimtab.segment")
local weights = require("resty.trimtab.weights")

local began = ejection.began
local can_retry = ejection.can_retry
local clock = libc.monotonic
local end_try = passes.end_try
local enter = passes.enter
local find = requests.find
local floor = math.floor
local follow = weights.follow
local gather = counters.gather
local get_last_failure = ngx_balancer.get_last_failure
local get_request = base.get_request
local key_of = requests.key
local add_to_budget = retries.add
local may_retry = retries.may
local max = math.max
local spend_retry = retries.spend
local mark_probe = ejection.mark
local new = ffi.new
local off = require("jit").off
local probe = ejection.probe
local set_current_peer = ngx_balancer.set_current_peer
local set_more_tries = ngx_balancer.set_more_tries
local set_timeouts = ngx_balancer.set_timeouts
local release = passes.release
local sample = picks.sample
local serve = passes.serve
local tonumber = tonumber
local touch = counters.touch

local SUCCESS, FAILURE = passes.SUCCESS, passes.FAILURE

local _M = {}

local registry, dict, map

-- What the rule reads and writes for one pick: per server, and per peer.
local in_flight, work, scores, skip
local seed


-- Picks for this registry from now on.
function _M.open(a_registry, a_dict, pid)
    registry, dict, map = a_registry, a_dict, a_registry.map
    local capacity = tonumber(map.head.address_capacity)
    local most = 0
    for _, upstream in ipairs(registry.upstreams) do
        retries.open(upstream)
        most = max(most, upstream.count)
    end
    in_flight = new("double[?]", capacity)
    work = new("double[?]", capacity)
    scores = new("double[?]", most)
    skip = new("double[?]", most)
    -- Workers that are forked from one master must not draw alike.
    seed = (pid * 48271 + floor(clock() * 1e6)) % 2147483646 + 1
end


-- A number in [0, 1). Park and Miller's generator: exact in doubles, and it
-- leaves math.random's state to others.
local function uniform()
    seed = seed * 16807 % 2147483647
    return seed / 2147483647
end

_M.uniform = uniform


-- The upstream to pick for.
local picking

-- pick[mask]: the peer of least score among those that are not masked. A
-- segment of its own, so that no trace goes from the loop in there to deeper
-- calls: see rule.pick.
local pick = segment(function(_, mask)
    local upstream = picking
    local p = rule.pick(upstream.count, upstream.server, upstream.weight,
                        upstream.affinity, mask, upstream.service, in_flight,
                        work, map.rate, map.error, registry.slots,
                        registry.sharing, uniform(), scores)
    return p
end)


-- Which peers have been tried, or must not be.
local function mask_tried(upstream, record)
    for p = 0, upstream.count - 1 do
        skip[p] = upstream.skip[p]
    end
    for t = 1, record.tries do
        skip[record.tried[t]] = 1
    end
end


-- The record of the pass for which nginx wants a peer. On a retry it ends
-- the try before.
local function current_record(upstream, now)
    local request = get_request()
    local record = find(key_of(request))
    if not record or record.upstream ~= upstream then
        return enter(request, upstream, now)
    end
    if record.server < 0 or record.is_bound then
        return record
    end
    local state = get_last_failure()
    if not state then
        -- An internal redirect to a location without our access hook.
        return enter(request, upstream, now)
    end
    -- "next" is a 403 or 404 that proxy_next_upstream names: an answer.
    end_try(record, now, state == "next" and SUCCESS or FAILURE)
    if record.is_rescued then
        -- It has been paid for.
        record.is_rescued = false
    else
        spend_retry(upstream)
    end
    return record
end


-- Counts a try that begins at peer p of the record's upstream; the scores
-- are those of its pick, or none where there was no choice.
function _M.begin_try(record, p, a_scores, now)
    local upstream = record.upstream
    sample(upstream, record, p, a_scores, now)
    local own_work = upstream.service * upstream.affinity[p]
    local i = upstream.server[p]
    record.is_unqueued = counters.start(i, upstream.pair[p], own_work, now)
    began(i, now)
    record.position = p
    record.pair = upstream.pair[p]
    record.work = own_work
    record.began = now
    record.tries = record.tries + 1
    record.tried[record.tries] = p
    -- Last: from here on the try is released.
    record.server = i
end

local begin_try = _M.begin_try


-- Has nginx give a try up early where another one is to follow, and the class
-- wants that; the last one has all the time that there is.
local function time_try(record, upstream, has_more)
    local seconds = upstream.try_timeout_seconds
    if seconds > 0 and has_more and can_retry(upstream) then
        record.is_hasty = true
        set_timeouts(nil, nil, seconds)
    elseif record.is_hasty then
        record.is_hasty = false
        set_timeouts(nil, nil, upstream.timeout_seconds)
    end
end


-- Has nginx take this try for the last where the class has used up its
-- retries, so that its answer goes through. `tries` is what nginx began with:
-- as many as the configuration allows, or as there are peers.
local function bound_tries(record, upstream)
    if record.tries == 1 then
        add_to_budget(upstream)
    else
        counters.retry(record.pair)
    end
    local left = upstream.tries - record.tries
    if left > 0 and not may_retry(upstream) then
        record.is_last = true
        set_more_tries(-left)
    end
    if upstream.try_timeout_seconds > 0 then
        time_try(record, upstream, left > 0 and not record.is_last)
    end
end


-- Tells nginx the peer that the record is bound to.
local function place_bound(record, upstream)
    local address = upstream.addresses[record.position + 1]
    record.is_bound = false
    local ok, err = set_current_peer(address)
    if not ok then
        release(record)
        record.is_fallback = true
        return nil, address .. ": " .. err
    end
    bound_tries(record, upstream)
    record.entries = record.entries + 1
    return true
end


-- The try that is being placed: its record, when, the peer that it is to try
-- (nil: the rule picks), and what went wrong.
local placing, placing_now, tried, failure

-- What prepare returns.
local PLACED, TO_PICK, TO_PICK_AGAIN = 0, 1, 2


-- prepare[upstream]: all that is before the pick.
local prepare = segment(function(_, upstream)
    local now = clock()
    failure, tried = nil, nil
    local record = current_record(upstream, now)
    placing, placing_now, picking = record, now, upstream
    if record.is_fallback or not upstream.can_pick then
        return PLACED
    end
    if record.is_bound then
        local _
        _, failure = place_bound(record, upstream)
        return PLACED
    end
    follow(registry, dict, now)
    touch(now)
    if record.tries == 0 then
        tried = probe(upstream, now)
        if tried then
            return PLACED
        end
        gather(upstream.count, upstream.server, in_flight, work)
        return TO_PICK
    end
    gather(upstream.count, upstream.server, in_flight, work)
    mask_tried(upstream, record)
    return TO_PICK_AGAIN
end)


-- gathered[upstream]: the state of its servers once more.
local gathered = segment(function(_, upstream)
    gather(upstream.count, upstream.server, in_flight, work)
end)


-- commit[p]: sends the request to peer p, and counts it there.
local commit = segment(function(_, p)
    local record, now = placing, placing_now
    local upstream = record.upstream
    if p < 0 then
        -- nginx's own balancer knows no drain, but an answer is better than
        -- none.
        record.is_fallback = true
        return
    end
    local ok, err = set_current_peer(upstream.addresses[p + 1])
    if not ok then
        record.is_fallback = true
        failure = upstream.addresses[p + 1] .. ": " .. err
        return
    end
    begin_try(record, p, not tried and scores, now)
    if tried then
        mark_probe(record)
    end
    bound_tries(record, upstream)
    record.entries = record.entries + 1
end)


-- Picks a peer and tells nginx. Leaves the pick to nginx's own balancer for
-- the rest of the pass when it cannot. Returns nil, or an error.
function _M.place(upstream)
    local step = prepare[upstream]
    if serve() and step ~= PLACED then
        local _ = gathered[upstream]
    end
    local p = tried
    if step == TO_PICK then
        p = pick[upstream.skip]
    elseif step == TO_PICK_AGAIN then
        p = pick[skip]
        if p < 0 then
            -- All were tried: again the best of all.
            p = pick[upstream.skip]
        end
    elseif not p then
        return failure
    end
    local _ = commit[p]
    return failure
end

-- See rule.pick and segment.lua.
off(_M.place)


return _M
