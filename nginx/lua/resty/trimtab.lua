-- Trimtab's hooks in nginx: what init, access, balancer and log phases call.
--
--     lua_shared_dict trimtab 8m;
--     init_by_lua_block        { trimtab = require("resty.trimtab")
--                                trimtab.init(PATH) }
--     init_worker_by_lua_block { trimtab.init_worker() }
--     upstream NAME { server …;
--         balancer_by_lua_block { trimtab.balance(NAME) } }
--     location … {
--         access_by_lua_block { trimtab.access(NAME) }
--         proxy_pass http://NAME;
--         log_by_lua_block { trimtab.log(NAME) } }
--
-- The global is for speed: require takes 600 instructions a hook.
-- Where requests are never held (hold = "off") access is not needed.
--
-- init raises what is wrong with the configuration, so that nginx refuses to
-- start or to reload. After that nothing raises: a hook that fails leaves the
-- request to nginx's own balancer, and says so in the error log.
--
-- Runs on nginx 1.22 with lua module 0.10.23 and lua-resty-core 0.1.25
-- (Debian 12), and on nginx 1.26 with 0.10.28 and 0.1.31 (Debian 13); what it
-- uses a current OpenResty has, though none was run. Needs lua_code_cache on,
-- which it is by default.
local account = require("resty.trimtab.account")
local base = require("resty.core.base")
local board = require("resty.trimtab.board")
local checks = require("resty.trimtab.checks")
local counters = require("resty.trimtab.counters")
local dispatch = require("resty.trimtab.dispatch")
local ejection = require("resty.trimtab.ejection")
local holding = require("resty.trimtab.holding")
local libc = require("resty.trimtab.libc")
local limits = require("resty.trimtab.limits")
local mapping = require("resty.trimtab.mapping")
local passes = require("resty.trimtab.passes")
local picks = require("resty.trimtab.picks")
local registry_module = require("resty.trimtab.registry")
local report = require("resty.trimtab.report")
local requests = require("resty.trimtab.requests")
local retries = require("resty.trimtab.retries")
local rows = require("resty.trimtab.rows")
local services = require("resty.trimtab.services")
local settings_module = require("resty.trimtab.settings")
local segment = require("resty.trimtab.segment")
local stack = require("resty.trimtab.stack")
local wake = require("resty.trimtab.wake")
local weights = require("resty.trimtab.weights")

local ERR = ngx.ERR
local SERVICE_UNAVAILABLE = ngx.HTTP_SERVICE_UNAVAILABLE
local WARN = ngx.WARN
local admit = holding.admit
local ceil = math.ceil
local clock = libc.monotonic
local error = error
local every = ngx.timer.every
local exit = ngx.exit
local get_method = ngx.req.get_method
local get_request = base.get_request
local header = ngx.header
local max = math.max
local min = math.min
local off = require("jit").off
local opt = require("jit").opt
local ngx_log = ngx.log
local pcall = pcall
local place = dispatch.place
local read_body = ngx.req.read_body
local reserve = stack.reserve
local tonumber = tonumber
local tostring = tostring
local type = type

-- Dead workers and abandoned requests are looked for this often: counts are
-- right again within a second of a kill.
local MAINTENANCE_SECONDS = 0.4
-- What Retry-After says: clients that come back at once make it worse, and
-- nobody knows more than half a minute ahead.
local MIN_RETRY_SECONDS = 1
local MAX_RETRY_SECONDS = 30
-- A phase's trace has more constants than LuaJIT's default allows (500 words).
local MAX_TRACE_CONSTANTS = 4000
-- The same complaint is logged once in this time.
local COMPLAINT_SECONDS = 10

local _M = { version = "0.1.0" }

-- Set by init, in the master, and inherited by the workers.
local registry, dict, generation
-- Set by init_worker.
local is_ready = false
-- Upstreams by name: those that are counted, and those where we pick.
local counted, placed = {}, {}
local is_checking = false
local worker_count, last_refill

local last_complaint = -COMPLAINT_SECONDS


local function complain(what, err)
    local now = clock()
    if now - last_complaint >= COMPLAINT_SECONDS then
        last_complaint = now
        ngx_log(ERR, "trimtab: failed to ", what, ": ", tostring(err),
                "; nginx's own balancer goes on")
    end
end


-- has_no_body[true]: whether the request is of a kind that has none.
local has_no_body = segment(function()
    local method = get_method()
    return method == "GET" or method == "HEAD"
end)


-- Reads the whole request body, so that response time counts from there and
-- a slow upload holds no slot of a peer. Returns whether it is here.
local function take_body()
    if has_no_body[true] then
        return true
    end
    -- Raises for HTTP/2 without a length; nginx reads that one later.
    return (pcall(read_body))
end


-- enter[upstream]: a request arrives that nobody holds.
local enter = segment(function(_, upstream)
    local record = passes.enter(get_request(), upstream, clock())
    if not registry.settings.balance then
        record.is_counted = true
        counters.class_in_flight(upstream.index, 1)
    end
    return true
end)


local function arrive(upstream)
    if take_body() and upstream.hold ~= "off" and registry.settings.balance
    then
        return admit(upstream)
    end
    local is_counted = enter[upstream]
    passes.serve()
    return is_counted
end


-- Overload: better another server, or later, than too late.
local function refuse(seconds)
    header["Retry-After"] = ceil(min(max(seconds, MIN_RETRY_SECONDS),
                                     MAX_RETRY_SECONDS))
    return exit(SERVICE_UNAVAILABLE)
end


local function leave(upstream)
    if is_checking then
        is_checking = account.check(get_request())
    end
    passes.leave(upstream)
end


-- A hook was called with a name that is none of ours, or before it was ready.
local function complain_of(name)
    if is_ready then
        complain("find an upstream in trimtab.json", name)
    end
end


-- Counts the arrival of a request of this class, and holds it until a server
-- has room for it. Access phase.
function _M.access(name)
    local upstream = counted[name]
    if not upstream then
        return complain_of(name)
    end
    reserve()
    local ok, is_admitted, more = pcall(arrive, upstream)
    if not ok then
        complain("count a request's arrival", is_admitted)
    elseif is_admitted == nil then
        complain("hold a request", more)
    elseif not is_admitted then
        return refuse(more)
    end
end


-- Picks the peer for the next try. Balancer phase.
function _M.balance(name)
    local upstream = placed[name]
    if not upstream then
        if not counted[name] then
            complain_of(name)
        end
        return
    end
    reserve()
    local ok, err = pcall(place, upstream)
    if not ok then
        complain("pick a peer", err)
    elseif err then
        complain("set the peer", err)
    end
end


-- Counts the end of a request. Log phase. Without a name it ends only what
-- access or balance began, and so may stand at the level of the server, for
-- the locations that error_page leads to.
function _M.log(name)
    if not is_ready then
        return
    end
    reserve()
    local ok, err = pcall(leave, counted[name or ""] or false)
    if not ok then
        complain("count a request's end", err)
    end
end


-- The few steps between segments are not worth a trace: see segment.lua.
off(arrive)
off(leave)
off(_M.access)
off(_M.balance)
off(_M.log)


-- Everything that the hook knows: see report.snapshot.
function _M.snapshot()
    weights.follow(registry, dict, clock())
    return report.snapshot(registry)
end


-- How many records of requests this worker has, for tests of leaks: live,
-- free to be reused, and in limbo until nginx has freed their requests.
function _M.records()
    local live, free, limbo = requests.counts()
    return { live = live, free = free, limbo = limbo }
end


-- Content handler: the snapshot as JSON.
function _M.status()
    return require("resty.trimtab.status").status(_M.snapshot, _M.version)
end


-- Content handler: the same, in the shape of nginx-module-vts.
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
    local map, err = mapping.attach(dict, settings.address_count,
                                    settings.pair_count, ngx.worker.count(),
                                    ngx.now())
    if not map then
        error("trimtab: " .. err, 0)
    end
    registry = registry_module.new(map, settings)
    local ok
    ok, err = wake.init(dict)
    if not ok then
        ngx_log(WARN, "trimtab: ", err, "; workers look for slots that others ",
                "have freed every 50 ms instead")
    end
    generation = tonumber(map.head.generation) + 1
    map.head.generation = generation
    ejection.configure(registry, generation)
    if not settings.balance then
        return
    end
    for _, upstream in ipairs(registry.upstreams) do
        if not upstream.can_pick then
            ngx_log(WARN, "trimtab: upstream ", upstream.name, " has peers ",
                    "that are host names: nginx's own balancer picks there; ",
                    "give addresses instead")
        end
    end
end


local function refill_retries(now)
    for _, upstream in ipairs(registry.upstreams) do
        retries.refill(upstream, now - last_refill, worker_count)
    end
    last_refill = now
end


local function maintain(premature)
    if premature then
        if wake.is_asleep then
            -- Else it would end up to a second later.
            wake.rouse()
        end
        return board.resign()
    end
    reserve()
    local ok, err = pcall(function()
        rows.sweep(registry.map, dict)
        requests.sweep(passes.abandon)
        counters.touch(clock())
        weights.follow(registry, dict, clock())
        services.refresh(registry)
        limits.refresh(registry)
        refill_retries(clock())
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


local function check(premature)
    if not premature then
        checks.tick()
    end
end


local function start_timer(make, seconds, callback)
    local ok, err = make(seconds, callback)
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
    local row = rows.claim(registry.map, dict, pid, generation, id)
    if not row then
        ngx_log(ERR, "trimtab: no row of counters is free, as old workers ",
                "still drain: this worker leaves all to nginx's own ",
                "balancer; set worker_shutdown_timeout")
        return
    end
    opt.start("maxirconst=" .. MAX_TRACE_CONSTANTS)
    account.open()
    is_checking = true
    counters.open(registry.map, registry, row)
    picks.open(row)
    passes.open(registry, holding)
    dispatch.open(registry, dict, pid)
    holding.open(registry, dict, row)
    board.open(registry, dict)
    ejection.open(registry)
    services.refresh(registry)
    ejection.refresh(clock())
    worker_count, last_refill = ngx.worker.count(), clock()
    is_ready = true
    counted = registry.by_name
    placed = registry.settings.balance and counted or placed
    start_timer(every, MAINTENANCE_SECONDS, maintain)
    start_timer(every, registry.settings.interval_seconds, talk)
    local check_seconds = checks.open(registry)
    if check_seconds then
        start_timer(every, check_seconds, check)
    end
    if registry.settings.balance then
        local ok, err = holding.listen(pid)
        if not ok then
            ngx_log(ERR, "trimtab: failed to start a timer: ", err)
        end
    end
    -- The first weights at once, not after an interval.
    start_timer(ngx.timer.at, 0, talk)
end


return _M
