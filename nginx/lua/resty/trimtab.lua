-- Trimtab's hooks in nginx: what init, access, balancer and log phases call.
--
--     lua_shared_dict trimtab 8m;
--     init_by_lua_block        { require("resty.trimtab").init(PATH) }
--     init_worker_by_lua_block { require("resty.trimtab").init_worker() }
--     upstream NAME { server …;
--         balancer_by_lua_block { require("resty.trimtab").balance(NAME) } }
--     location … {
--         access_by_lua_block { require("resty.trimtab").access(NAME) }
--         proxy_pass http://NAME;
--         log_by_lua_block { require("resty.trimtab").log(NAME) } }
--
-- init raises what is wrong with the configuration, so that nginx refuses to
-- start or to reload. After that nothing raises: a hook that fails leaves the
-- request to nginx's own balancer, and says so in the error log.
--
-- A *pass* is one handling by one upstream: a request has one, or several
-- where internal redirects (error_page, X-Accel-Redirect) lead it on. A *try*
-- is one peer in a pass. Where another pass begins the one before is counted
-- as a request of its class, and its try ends.
local base = require("resty.core.base")
local board = require("resty.trimtab.board")
local counters = require("resty.trimtab.counters")
local ffi = require("ffi")
local libc = require("resty.trimtab.libc")
local mapping = require("resty.trimtab.mapping")
local ngx_balancer = require("ngx.balancer")
local registry_module = require("resty.trimtab.registry")
local report = require("resty.trimtab.report")
local requests = require("resty.trimtab.requests")
local rule = require("resty.trimtab.rule")
local services = require("resty.trimtab.services")
local settings_module = require("resty.trimtab.settings")
local tries_module = require("resty.trimtab.tries")
local variables = require("resty.trimtab.variables")
local weights = require("resty.trimtab.weights")

local ERR = ngx.ERR
local WARN = ngx.WARN
local clock = libc.monotonic
local every = ngx.timer.every
local find = requests.find
local floor = math.floor
local get_last_failure = ngx_balancer.get_last_failure
local get_method = ngx.req.get_method
local get_request = base.get_request
local has_text = variables.has_text
local key_of = requests.key
local last_number = variables.last_number
local ngx_log = ngx.log
local pcall = pcall
local read_body = ngx.req.read_body
local set_current_peer = ngx_balancer.set_current_peer
local tonumber = tonumber
local tostring = tostring
local type = type

-- Dead workers and abandoned requests are looked for this often: counts are
-- right again within a second of a kill.
local MAINTENANCE_SECONDS = 0.4
-- The same complaint is logged once in this time.
local COMPLAINT_SECONDS = 10
-- nginx's clock has milliseconds and stands still within an iteration of its
-- event loop: our own time of a try is believed up to this much beyond it.
local CLOCK_SLACK_SECONDS = 0.002

local SUCCESS, NEITHER, FAILURE = 1, 0, -1

local _M = { version = "0.1.0" }

-- Set by init (in the master; workers inherit them), and init_worker.
local registry, dict, map, generation
local by_name
local is_ready = false

-- What the rule reads and writes for one pick.
local in_flight, work, scores, skip
local seed = 1

local last_complaint = -COMPLAINT_SECONDS


local function complain(what, err)
    local now = clock()
    if now - last_complaint >= COMPLAINT_SECONDS then
        last_complaint = now
        ngx_log(ERR, "trimtab: failed to ", what, ": ", tostring(err),
                "; nginx's own balancer goes on")
    end
end


-- A number in [0, 1). Park and Miller's generator: exact in doubles, and it
-- leaves math.random's state to others.
local function uniform()
    seed = seed * 16807 % 2147483647
    return seed / 2147483647
end


-- Ends the try under way.
local function end_try(record, now, outcome)
    local i = record.server
    record.server = -1
    counters.finish(i, record.pair, record.work, now, outcome)
end


-- Releases what the record holds, with no word on how it went.
local function release(record)
    if record.server >= 0 then
        end_try(record, clock(), NEITHER)
    end
    if record.is_counted then
        record.is_counted = false
        counters.class_in_flight(record.upstream.index, -1)
    end
end


local function abandon(record)
    release(record)
    requests.remove(record)
end


local function begin_pass(record, upstream, now)
    record.upstream = upstream
    record.arrival = now
    record.server = -1
    record.tries = 0
    record.is_fallback = false
    record.is_counted = false
end


-- Whether the peer ended its answer before its announced length, which nginx
-- logs but does not say in the status, as that was already sent.
local function is_cut(request, status)
    if status ~= 200 and status ~= 206 then
        return false
    end
    local announced = last_number(request, "upstream_http_content_length")
    if not announced then
        return false
    end
    local taken = last_number(request, "upstream_response_length")
    return taken ~= nil and taken < announced and get_method() ~= "HEAD"
end


-- The outcome of a try that ended with this status (less than 100: none).
local function outcome_of(request, status, is_final)
    if status >= 500 then
        return FAILURE
    end
    if status < 100 then
        return NEITHER
    end
    if is_final then
        if not has_text(request, "request_completion") then
            -- The client went away.
            return NEITHER
        end
        if is_cut(request, status) then
            return FAILURE
        end
    end
    return SUCCESS
end


-- The pass ends with the try that we placed.
local function end_placed(record, request, now, is_final)
    local status = last_number(request, "upstream_status")
    if not status then
        -- Not the request that made this record.
        return release(record)
    end
    local outcome = outcome_of(request, status, is_final)
    if status < 100 then
        status = ngx.status
    end
    local seconds = now - record.began
    local coarse = last_number(request, "upstream_response_time")
    if coarse and coarse >= 0 and seconds > coarse + CLOCK_SLACK_SECONDS then
        -- A slow client: the peer was done earlier.
        seconds = coarse
    end
    local q = record.pair
    end_try(record, now, outcome)
    if outcome == SUCCESS and record.is_unqueued then
        counters.unqueued(q, seconds)
        if services.sample(map.services, q, seconds) then
            services.refresh(registry)
        end
    end
    local received = last_number(request, "upstream_bytes_received")
    counters.request(q, status, record.began - record.arrival + seconds,
                     last_number(request, "request_length") or 0,
                     received and received > 0 and received or 0,
                     record.upstream.deadline)
end


-- The pass ends, and nginx's own balancer placed its tries: count them by
-- nginx's account. `skipped` entries are accounted for.
local function end_unplaced(upstream, arrival, skipped, now)
    local var = ngx.var
    local tries = tries_module.parse(var.upstream_addr, var.upstream_status,
                                     var.upstream_response_time)
    local last, last_pair
    local sum = 0
    for t = skipped + 1, #tries do
        local try = tries[t]
        local p = upstream.position[try.address]
        last, last_pair = try, nil
        sum = sum + try.seconds
        if p then
            last_pair = upstream.pair[p]
            local outcome = try.status >= 500 and FAILURE
                            or try.status >= 100 and SUCCESS or NEITHER
            counters.past_try(upstream.server[p], last_pair, try.seconds,
                              outcome)
        else
            counters.class_unknown(upstream.index)
        end
    end
    if not last then
        return
    end
    counters.class_unplaced(upstream.index)
    if last_pair then
        -- From arrival, but without a slow client's part; the milliseconds
        -- of nginx's account may add up to more than ours.
        local seconds = sum
        if arrival then
            local elapsed = now - arrival
            if elapsed <= sum + CLOCK_SLACK_SECONDS * #tries then
                seconds = elapsed
            end
        end
        local status = last.status >= 100 and last.status or ngx.status
        counters.request(last_pair, status, seconds,
                         tonumber(var.request_length) or 0,
                         tonumber(tostring(var.upstream_bytes_received or "")
                                  :match("(%d+)$")) or 0,
                         upstream.deadline)
    end
    return #tries
end


local function end_pass(record, request, now, is_final)
    if record.is_counted then
        record.is_counted = false
        counters.class_in_flight(record.upstream.index, -1)
    end
    if record.server >= 0 then
        end_placed(record, request, now, is_final)
    elseif record.upstream then
        record.entries = end_unplaced(record.upstream, record.arrival,
                                      record.entries, now) or record.entries
    end
end


-- The record of this request, new or known; ends a pass that it was in.
local function enter(request, upstream, now)
    local key = key_of(request)
    local record, dead = find(key)
    if dead then
        abandon(dead)
    end
    if record then
        end_pass(record, request, now, false)
    else
        record = requests.add(request, key)
    end
    begin_pass(record, upstream, now)
    return record
end


-- Reads the whole request body, so that response time counts from there and
-- a slow upload holds no slot of a peer.
local function take_body()
    local method = get_method()
    if method ~= "GET" and method ~= "HEAD" then
        -- Raises for HTTP/2 without a length; nginx reads that one later.
        pcall(read_body)
    end
end


local function arrive(name)
    local upstream = by_name[name]
    if not upstream then
        return complain("find the upstream", name)
    end
    local request = get_request()
    local record = enter(request, upstream, clock())
    if not registry.settings.balance then
        record.is_counted = true
        counters.class_in_flight(upstream.index, 1)
    end
end


-- The peer for the next try, from 0, or -1.
local function choose(upstream, record)
    local count = upstream.count
    local mask = upstream.skip
    counters.gather(count, upstream.server, in_flight, work)
    if record.tries > 0 then
        mask = skip
        for p = 0, count - 1 do
            mask[p] = upstream.skip[p]
        end
        for t = 1, record.tries do
            mask[record.tried[t]] = 1
        end
    end
    local u = uniform()
    local p = rule.pick(count, upstream.server, upstream.weight,
                        upstream.affinity, mask, upstream.service, in_flight,
                        work, map.rate, map.error, registry.slots, u, scores)
    if p < 0 and mask == skip then
        -- All were tried: again the best of all.
        p = rule.pick(count, upstream.server, upstream.weight,
                      upstream.affinity, upstream.skip, upstream.service,
                      in_flight, work, map.rate, map.error, registry.slots, u,
                      scores)
    end
    return p
end


local function place(name)
    local upstream = by_name[name]
    if not upstream then
        return complain("find the upstream", name)
    end
    if not upstream.can_pick then
        return
    end
    local now = clock()
    local request = get_request()
    local record, dead = find(key_of(request))
    if record and record.upstream == upstream and record.server >= 0 then
        local state = get_last_failure()
        if state then
            end_try(record, now, state == "next" and SUCCESS or FAILURE)
        else
            -- An internal redirect to a location without our access hook.
            record = enter(request, upstream, now)
        end
    elseif dead or not record or record.upstream ~= upstream then
        record = enter(request, upstream, now)
    end
    if record.is_fallback then
        return
    end
    weights.follow(registry, dict, now)
    counters.touch(now)
    local p = choose(upstream, record)
    if p < 0 then
        -- All are drained. nginx's own balancer knows no drain, but an
        -- answer is better than none.
        record.is_fallback = true
        return
    end
    local ok, err = set_current_peer(upstream.addresses[p + 1])
    if not ok then
        record.is_fallback = true
        return complain("set the peer " .. upstream.addresses[p + 1], err)
    end
    local own_work = upstream.service * upstream.affinity[p]
    local i = upstream.server[p]
    record.is_unqueued = counters.start(i, upstream.pair[p], own_work, now)
    record.position = p
    record.pair = upstream.pair[p]
    record.work = own_work
    record.began = now
    record.tries = record.tries + 1
    record.tried[record.tries] = p
    record.entries = record.entries + 1
    -- Last: from here on the try is released.
    record.server = i
end


local function leave(name)
    local request = get_request()
    local record = requests.get(key_of(request))
    if record then
        end_pass(record, request, clock(), true)
        return requests.remove(record)
    end
    local upstream = by_name[name]
    if upstream then
        end_unplaced(upstream, nil, 0, clock())
    end
end


-- Counts the arrival of a request of this class. Access phase.
function _M.access(name)
    if not is_ready then
        return
    end
    take_body()
    local ok, err = pcall(arrive, name)
    if not ok then
        complain("count a request's arrival", err)
    end
end


-- Picks the peer for the next try. Balancer phase.
function _M.balance(name)
    if not is_ready or not registry.settings.balance then
        return
    end
    local ok, err = pcall(place, name)
    if not ok then
        complain("pick a peer", err)
    end
end


-- Counts the end of a request. Log phase. Without a name it ends only what
-- access or balance began, and so may stand at the level of the server, to
-- catch what error_page leads to other locations.
function _M.log(name)
    if not is_ready then
        return
    end
    local ok, err = pcall(leave, name)
    if not ok then
        complain("count a request's end", err)
    end
end


-- Everything that the hook knows: see report.snapshot.
function _M.snapshot()
    weights.follow(registry, dict, clock())
    return report.snapshot(registry)
end


-- {"live", "free", "limbo"} records of requests in this worker.
function _M.records()
    local live, free, limbo = requests.counts()
    return { live = live, free = free, limbo = limbo }
end


function _M.status()
    return require("resty.trimtab.status").status(_M.snapshot,
                                                   _M.version)
end


function _M.status_vts()
    return require("resty.trimtab.status").status_vts(_M.snapshot,
                                                       _M.version)
end


-- Reads the settings and finds or makes the shared memory. Raises what is
-- wrong. Master only (init_by_lua).
function _M.init(path)
    if type(path) ~= "string" then
        error("the path of trimtab.json must be a string", 2)
    end
    dict = ngx.shared.trimtab
    if not dict then
        error("trimtab: the configuration lacks `lua_shared_dict trimtab "
              .. "8m;`", 0)
    end
    local settings = settings_module.read(path)
    local addresses, seen, pair_count, most = 0, {}, 0, 0
    for _, upstream in ipairs(settings.upstreams) do
        pair_count = pair_count + #upstream.peers
        most = math.max(most, #upstream.peers)
        for _, peer in ipairs(upstream.peers) do
            if not seen[peer.address] then
                seen[peer.address] = true
                addresses = addresses + 1
            end
        end
    end
    local err
    map, err = mapping.attach(dict, addresses, pair_count,
                              ngx.worker.count(), ngx.now())
    if not map then
        error("trimtab: " .. err, 0)
    end
    registry = registry_module.new(map, settings)
    by_name = registry.by_name
    generation = tonumber(map.head.generation) + 1
    map.head.generation = generation
    local capacity = tonumber(map.head.address_capacity)
    in_flight = ffi.new("double[?]", capacity)
    work = ffi.new("double[?]", capacity)
    scores = ffi.new("double[?]", most)
    skip = ffi.new("double[?]", most)
    if settings.balance then
        for _, upstream in ipairs(registry.upstreams) do
            if not upstream.can_pick then
                ngx_log(WARN, "trimtab: upstream ", upstream.name, " has ",
                        "peers that are host names: nginx's own balancer ",
                        "picks there; give addresses instead")
            end
        end
    end
end


local function maintain(premature)
    if premature then
        return board.resign()
    end
    local ok, err = pcall(function()
        counters.sweep(dict)
        requests.sweep(abandon)
        weights.follow(registry, dict, clock())
        services.refresh(registry)
    end)
    if not ok then
        complain("maintain the counters", err)
    end
end


local function talk(premature)
    if premature then
        return board.resign()
    end
    board.tick()
end


local function start_timer(seconds, callback)
    local ok, err = every(seconds, callback)
    if not ok then
        ngx_log(ERR, "trimtab: failed to start a timer: ", err)
    end
end


-- Takes this worker's row of counters, and starts its timers.
function _M.init_worker()
    local id, pid = ngx.worker.id(), ngx.worker.pid()
    if not id or not registry then
        -- The privileged agent serves nobody.
        return
    end
    counters.open(map, registry)
    if not counters.claim(dict, pid, generation, id) then
        ngx_log(ERR, "trimtab: no row of counters is free, as old workers ",
                "still drain: this worker leaves all to nginx's own ",
                "balancer; set worker_shutdown_timeout")
        return
    end
    seed = (pid * 48271 + floor(clock() * 1e6)) % 2147483646 + 1
    services.refresh(registry)
    board.open(registry, dict)
    is_ready = true
    start_timer(MAINTENANCE_SECONDS, maintain)
    start_timer(registry.settings.interval_seconds, talk)
    -- The first weights at once, not after an interval.
    local ok, err = ngx.timer.at(0, talk)
    if not ok then
        ngx_log(ERR, "trimtab: failed to start a timer: ", err)
    end
end


return _M
