-- Talks to the policy server: pulls weights and pushes statistics, every
-- interval, from a timer in one worker. Never in the request path, and
-- nothing here can stop a request: what fails is logged, once a change of
-- state, and tried again at the next interval.
--
-- One worker leads. The lease is a pid and a heartbeat of the monotonic clock
-- in the shared mapping (and not a shared-dict key with an expiry, which
-- follows the wall clock: a clock set back would leave nobody to lead).
-- Another worker takes over when the leader exits, dies, or is silent for
-- too long. Two at once for a moment would do no harm: answers and reports
-- are idempotent.
local grpc = require("resty.trimtab.grpc")
local libc = require("resty.trimtab.libc")
local mapping = require("resty.trimtab.mapping")
local policy = require("resty.trimtab.policy")
local report = require("resty.trimtab.report")
local weights = require("resty.trimtab.weights")

local NOTICE = ngx.NOTICE
local WARN = ngx.WARN
local clock = libc.monotonic
local floor = math.floor
local get_pid = ngx.worker.pid
local is_exiting = ngx.worker.exiting
local max = math.max
local min = math.min
local ngx_log = ngx.log
local pcall = pcall
local tostring = tostring

-- A leader that has not woken for so long is stuck.
local LEASE_INTERVALS = 5
local MIN_LEASE_SECONDS = 3
-- A call that takes longer than this is given up.
local MIN_TIMEOUT_SECONDS = 1
local MAX_TIMEOUT_SECONDS = 5
-- Whatever the policy server says.
local MAX_REFRESH_SECONDS = 60

local _M = {}

local registry, dict, head, pid
local is_talking = false
local next_pull = 0
-- Whether the policy server said so when it last gave us weights.
local reads_columns = false


-- Whether this worker leads, now.
local function leads()
    local now = clock()
    if head.leader == pid then
        head.leader_beat = now
        return true
    end
    local lease = max(LEASE_INTERVALS * registry.settings.interval_seconds,
                      MIN_LEASE_SECONDS)
    local function is_vacant()
        return head.leader == 0 or now - head.leader_beat > lease
               or not libc.is_alive(tonumber(head.leader))
    end
    if is_vacant() then
        mapping.locked(dict, function()
            if is_vacant() then
                head.leader = pid
                head.leader_beat = now
            end
        end)
    end
    return head.leader == pid
end


_M.leads = leads


-- Gives the lead up, if it is ours.
local function resign()
    if head and head.leader == pid then
        head.leader = 0
    end
end


-- Logs a change between working and failing. `field` of the head keeps the
-- state, so that a change of leader is no news.
local function note(field, ok, what, err)
    local before = head[field]
    if ok and before ~= 1 then
        head[field] = 1
        ngx_log(NOTICE, "trimtab: ", what, " the policy server works")
    elseif not ok and before ~= -1 then
        head[field] = -1
        ngx_log(WARN, "trimtab: failed ", what, " the policy server: ",
                tostring(err), "; ", weights.describe(registry))
    end
end


local function call(method, request)
    local settings = registry.settings
    local timeout = min(max(settings.interval_seconds, MIN_TIMEOUT_SECONDS),
                        MAX_TIMEOUT_SECONDS)
    return grpc.call(settings.bridge_host, settings.bridge_port, method,
                     request, floor(timeout * 1000))
end


-- What we ask for.
local function wanted()
    local names = {}
    for u, upstream in ipairs(registry.upstreams) do
        names[u] = upstream.name
    end
    local epoch, generation = weights.held(registry)
    return { upstreams = names, epoch = epoch, generation = generation }
end


local function take(response)
    reads_columns = response.reads_columns
    return weights.take(registry, dict, response)
end


local function pull()
    reads_columns = false
    local query = wanted()
    query.instance = registry.settings.instance
    local request, err = policy.encode_get_weights_request(query)
    if not request then
        return nil, err
    end
    local bytes
    bytes, err = call("GetWeights", request)
    if not bytes then
        return nil, err
    end
    local response
    response, err = policy.decode_get_weights_response(bytes)
    if not response then
        return nil, err
    end
    return take(response)
end


-- Sends a report, which may ask for weights too. Returns its answer, or nil
-- and an error.
local function push(asks)
    local sequence = tonumber(head.sequence) + 1
    head.sequence = sequence
    weights.follow(registry, dict, clock())
    local snapshot = report.snapshot(registry)
    local request, err = policy.encode_report_stats_request(
        report.message(snapshot, sequence, reads_columns,
                       asks and wanted() or nil))
    if not request then
        return nil, err
    end
    local bytes
    bytes, err = call("ReportStats", request)
    if not bytes then
        return nil, err
    end
    return policy.decode_report_stats_response(bytes)
end


-- Notes what became of asking for weights, and when to ask again.
local function settle(now, ok, err)
    note("pull_state", ok, "to get weights from", err)
    -- After a failure at the next tick; a margin for the timer's jitter.
    local refresh = ok and min(tonumber(head.refresh_seconds),
                               MAX_REFRESH_SECONDS) or 0
    next_pull = now + 0.9 * refresh
end


local function talk()
    local now = clock()
    local is_due = now >= next_pull
    -- One call in place of two, where the policy server is known to do that.
    local asks = is_due and reads_columns
    if is_due and not asks then
        settle(now, pull())
    end
    local response, err = push(asks)
    if asks then
        if response and response.weights then
            settle(now, take(response.weights))
        else
            settle(now, pull())
        end
    end
    note("push_state", response, "to report to", err)
end


-- One interval, from a timer. Never throws.
function _M.tick()
    if is_exiting() then
        return resign()
    end
    if not leads() or is_talking then
        return
    end
    is_talking = true
    local ok, err = pcall(talk)
    is_talking = false
    if not ok then
        note("pull_state", false, "to talk to", err)
    end
end


-- For the timer that ends.
_M.resign = resign


function _M.open(a_registry, a_dict)
    registry, dict = a_registry, a_dict
    head = registry.map.head
    pid = get_pid()
end


return _M
