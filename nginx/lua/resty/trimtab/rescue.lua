-- Requests that a server has caught, as it has fallen silent, are tried on
-- another one.
--
-- nginx waits for an answer until timeout_seconds, a minute by default, and
-- nobody waits as long. But how long is too long? Not a number of service
-- times, as some classes have answers that take a hundred times the mean. So
-- it is what the class itself has shown: a request is given up when it has
-- waited for longer than any of the last thousand or so waited for the first
-- byte of their answers. Of answers alike, whatever their law, it would be
-- one in a thousand that does; and it is asked only of requests at a server
-- that is ejected as it has stalled.
--
-- What a request has to be besides: one that nginx would try again when its
-- time ran out, that is, one that may be repeated, that has a try left, within
-- the retry budget; and nothing of its answer must be here yet.
local account = require("resty.trimtab.account")
local ffi = require("ffi")
local health_of = require("resty.trimtab.health")
local requests = require("resty.trimtab.requests")
local retries = require("resty.trimtab.retries")
local timers = require("resty.trimtab.timers")

local C = ffi.C
local STALL = health_of.STALL
local band = require("bit").band
local end_wait = timers.end_wait
local huge = math.huge
local is_unanswered = account.is_unanswered
local max = math.max
local min = math.min
local off = require("jit").off
local visit = requests.visit

ffi.cdef[[
int trimtab_method(void *) __asm__("ngx_http_lua_ffi_req_get_method");
]]

-- What nginx does not try again by itself, as bits of its methods. What is
-- not a method is negative.
local POST, LOCK, PATCH = 0x8, 0x1000, 0x4000
local NOT_IDEMPOTENT = POST + LOCK + PATCH
-- Memory of the longest wait: a thousand requests, of all workers.
local KEPT = 1 - 1 / 1000
-- With fewer nobody knows how long answers of a class may take.
local LEAST = 100
-- A wait is not known to the millisecond.
local SLACK_SECONDS = 0.002

local _M = {}

local registry, healths, services


-- Rescues requests of this registry from now on.
function _M.open(a_registry)
    registry, healths = a_registry, a_registry.map.health
    services = a_registry.map.services
end


-- A server has answered a request of this class: the head of the answer was
-- here after so many seconds, and all of it.
function _M.answered(upstream, head_seconds, seconds)
    local service = services[upstream.index]
    service.answers = service.answers + 1
    service.longest_head = max(head_seconds, service.longest_head * KEPT)
    service.longest = max(seconds, service.longest * KEPT)
end


-- The longest that an answer of a class is known to take, in seconds; huge
-- while that is not known.
function _M.longest(upstream)
    local service = services[upstream.index]
    return service.answers < LEAST and huge
           or service.longest + SLACK_SECONDS
end


-- After so many seconds at a silent server a request is given up.
local function patience(upstream)
    local service = services[upstream.index]
    if not upstream.retry_stalled or service.answers < LEAST then
        return huge
    end
    return max(upstream.eject_stall_seconds,
               service.longest_head + SLACK_SECONDS)
end

_M.patience = patience


-- What count() counts: this worker's requests at a server, and those of them
-- that are not answered yet.
local own, waiting, asked_of = 0, 0, -1


local function count(record, request)
    if record.server == asked_of then
        own = own + 1
        if is_unanswered(request) then
            waiting = waiting + 1
        end
    end
end


-- Whether server i, with `n` requests in flight, may be silent as far as this
-- worker knows: not where all that it has there are being answered, however
-- long that takes (a stream, an idle WebSocket).
function _M.may_be_silent(i, n)
    own, waiting, asked_of = 0, 0, i
    visit(huge, count)
    return waiting > 0 or n - own >= 2 or own > 1 and not account.knows()
end


local function may_repeat(record, request)
    local upstream = record.upstream
    if record.is_rescued or record.is_last or record.is_fallback
       or record.tries >= upstream.tries
    then
        return false
    end
    if upstream.retry_non_idempotent then
        return true
    end
    local method = C.trimtab_method(request)
    return method > 0 and band(method, NOT_IDEMPOTENT) == 0
end


local function has_stalled()
    for _, i in ipairs(registry.servers) do
        if healths[i].reason == STALL then
            return true
        end
    end
    return false
end


-- Of the present sweep: when it is, and when to look again.
local sweep_now, again = 0, huge


local function rescue(record, request)
    local upstream = record.upstream
    if healths[record.server].reason ~= STALL
       or not may_repeat(record, request)
    then
        return
    end
    local due = record.began + patience(upstream)
    if due > sweep_now then
        again = min(again, due)
    elseif retries.may(upstream) and is_unanswered(request)
           and end_wait(request, upstream.timeout_seconds)
    then
        -- Here, as others may be given up before nginx tries this one.
        record.is_rescued = true
        retries.spend(upstream)
    end
end


-- Gives up what has waited for too long at stalled servers. Returns when to
-- look again: huge when nobody is to be rescued later.
function _M.sweep(now)
    sweep_now, again = now, huge
    if has_stalled() then
        visit(huge, rescue)
    end
    return again
end

off(may_repeat)
off(rescue)
off(_M.may_be_silent)
off(_M.sweep)


return _M
