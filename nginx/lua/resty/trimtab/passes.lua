-- Passes and tries: what begins and ends for a request, and how each end is
-- counted.
--
-- A *pass* is one handling by one upstream: a request has one, or several
-- where internal redirects (error_page, X-Accel-Redirect) lead it on. A *try*
-- is one peer in a pass. Where another pass begins the one before is counted
-- as a request of its class, and its try ends.
local account = require("resty.trimtab.account")
local base = require("resty.core.base")
local counters = require("resty.trimtab.counters")
local ejection = require("resty.trimtab.ejection")
local libc = require("resty.trimtab.libc")
local requests = require("resty.trimtab.requests")
local rescue = require("resty.trimtab.rescue")
local segment = require("resty.trimtab.segment")
local services = require("resty.trimtab.services")
local tries_module = require("resty.trimtab.tries")
local variables = require("resty.trimtab.variables")

local announced_of = account.announced
local done_of = account.done
local clock = libc.monotonic
local ended = ejection.ended
local find = requests.find
local get_method = ngx.req.get_method
local get_record = requests.get
local get_request = base.get_request
local has_text = variables.has_text
local can_retry = ejection.can_retry
local is_in = ejection.is_in
local key_of = requests.key
local last_of = account.last
local note_answer = rescue.answered
local off = require("jit").off
local request_length = account.request_length
local text = variables.text

-- nginx's clock has milliseconds and stands still within an iteration of its
-- event loop: our own time of a try is believed up to this much beyond it.
local CLOCK_SLACK_SECONDS = 0.002

-- A slow reader holds a slot for up to twice as long: tries that began before
-- are looked at, this often.
local SLOW_SECONDS = 0.05

-- What nginx tries again elsewhere, as we render it.
local RETRIED = { [500] = true, [502] = true, [503] = true, [504] = true }

-- Of a try. A client that goes away says nothing about the peer.
local SUCCESS, NEITHER, FAILURE = 1, 0, -1

local _M = { SUCCESS = SUCCESS, FAILURE = FAILURE }

local registry, waiting
-- When slow readers were looked for.
local looked = 0


-- Counts for this registry. `holding` (see holding.lua) is told of each slot
-- that becomes free, and of requests that end while they wait.
function _M.open(a_registry, holding)
    registry, waiting = a_registry, holding
end


-- Ends the try under way.
local function end_try(record, now, outcome)
    local i, upstream = record.server, record.upstream
    record.server = -1
    record.is_bound = false
    counters.finish(i, record.pair, record.work,
                    upstream.service * upstream.affinity[record.position],
                    now, outcome)
    ended(record, i, now, outcome)
    waiting.freed(i, now)
end


-- Releases what the record holds, with no word on how it went.
local function release(record)
    if record.class then
        waiting.vacate(record)
    end
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
    record.is_bound = false
    record.is_last = false
    record.is_hasty = false
    record.is_probe = false
    record.is_rescued = false
    record.is_fallback = false
    record.is_counted = false
    record.answered = -1
end


-- The outcome of an answer without a server error. `length` is what nginx has
-- taken of its body (-1: nobody knows).
--
-- A peer that ends its answer before the announced length has failed; nginx
-- logs that, but does not say so in the status, as that was already sent.
local function outcome_of_answer(request, status, length)
    local announced = -1
    if (status == 200 or status == 206) and length >= 0 then
        announced = announced_of(request)
        if announced >= 0 and length >= announced then
            -- All of it is here, wherever the client is.
            return SUCCESS
        end
    end
    if not has_text(request, "request_completion") then
        -- The client went away.
        return NEITHER
    end
    if announced > length and get_method() ~= "HEAD" then
        return FAILURE
    end
    return SUCCESS
end


-- The outcome of a try that ended with this status (less than 100: none).
local function outcome_of(request, status, length, is_final)
    if status >= 500 then
        return FAILURE
    end
    if status < 100 then
        return NEITHER
    end
    if is_final then
        return outcome_of_answer(request, status, length)
    end
    return SUCCESS
end


local function count_request(request, q, status, seconds, received,
                             upstream)
    counters.request(q, status, seconds,
                     request_length(request),
                     received > 0 and received or 0, upstream.deadline)
end


-- Ends the try that nginx's account says has taken `coarse` seconds, `head` of
-- them to the answer's head (-1: nobody knows). Returns how long it took.
local function end_timed(record, now, coarse, outcome, head)
    local seconds = now - record.began
    if coarse >= 0 and seconds > coarse + CLOCK_SLACK_SECONDS then
        -- A slow client: the peer was done earlier.
        seconds = coarse
    end
    if head >= 0 and outcome == SUCCESS and is_in(record.server) then
        note_answer(record.upstream, head, seconds)
    end
    end_try(record, now, outcome)
    if outcome == SUCCESS and record.is_unqueued then
        counters.unqueued(record.pair, seconds)
        if services.sample(registry, record.upstream, record.position,
                           seconds)
        then
            services.refresh(registry)
        end
    end
    return seconds
end


-- The pass ends with the try that we placed.
local function end_placed(record, request, now, is_final)
    local status, coarse, length, received, head = last_of(request)
    if not status then
        -- Not the request that made this record.
        return release(record)
    end
    local outcome = outcome_of(request, status, length, is_final)
    if status < 100 then
        status = ngx.status
    end
    if outcome == FAILURE and record.is_last and RETRIED[status]
       and can_retry(record.upstream)
    then
        counters.retry_refused(record.pair)
    end
    local seconds = end_timed(record, now, coarse, outcome, head)
    count_request(request, record.pair, status,
                  record.began - record.arrival + seconds, received,
                  record.upstream)
end


-- The pass ends, and its try has before.
local function end_answered(record, request)
    local status, _, _, received = last_of(request)
    if status then
        count_request(request, record.pair, status,
                      record.began - record.arrival + record.answered,
                      received, record.upstream)
    end
end


-- The pass ends, and nginx's own balancer placed its tries: count them by
-- nginx's account. `skipped` entries are accounted for.
local function end_unplaced(upstream, request, arrival, skipped, now)
    local tries = tries_module.parse(text(request, "upstream_addr"),
                                     text(request, "upstream_status"),
                                     text(request, "upstream_response_time"))
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
        local _, _, _, received = last_of(request)
        count_request(request, last_pair, status, seconds, received or 0,
                      upstream)
    end
    return #tries
end


local function end_pass(record, request, now, is_final)
    if record.is_counted then
        record.is_counted = false
        counters.class_in_flight(record.upstream.index, -1)
    end
    if record.class or record.is_bound then
        -- No server has seen it.
        release(record)
    elseif record.server >= 0 then
        end_placed(record, request, now, is_final)
    elseif record.answered >= 0 then
        end_answered(record, request)
    elseif record.upstream then
        record.entries = end_unplaced(record.upstream, request,
                                      record.arrival, record.entries, now)
                         or record.entries
    end
end


-- A pass begins: the record of this request, new or known. Ends a pass that
-- it was in.
function _M.enter(request, upstream, now)
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


local left = segment(function(_, upstream)
    local request, now = get_request(), clock()
    local record = get_record(key_of(request))
    if record then
        end_pass(record, request, now, true)
        return requests.remove(record)
    end
    if upstream then
        end_unplaced(upstream, request, nil, 0, now)
    end
end)


-- Gives slots that have become free in the present phase to who waits for
-- them; to be called after each segment that may end a try, outside of it.
-- Returns whether there were any.
function _M.serve()
    if waiting.is_due then
        waiting.serve()
        return true
    end
    return false
end


-- The request of the present phase ends. Where it has no record, its tries at
-- `upstream` (or false) are counted by nginx's account.
function _M.leave(upstream)
    local _ = left[upstream]
    if waiting.is_due then
        waiting.serve()
    end
end


-- Ends a record whose request is gone: for requests.sweep.
function _M.abandon(record)
    abandon(record)
    _M.serve()
end

off(_M.leave)
off(_M.serve)

-- Ends the try of a living request whose whole answer nginx has, though its
-- client has not. Errors, and answers that may be cut or without a body, are
-- left to the end of the request.
local function settle(record, request)
    local status, coarse, length, _, head = done_of(request)
    if status and status >= 100 and status < 500 and length > 0
       and announced_of(request) <= length
    then
        record.answered = end_timed(record, clock(), coarse, SUCCESS,
                                    head)
    end
end


-- Frees the slots of slow readers: a client may take minutes for what its
-- server has long done. The log phase comes when the client has it, and a
-- body filter would cost each request a twelfth of what least_conn takes; so
-- this is called again and again, and looks each SLOW_SECONDS.
function _M.free_slow()
    local now = clock()
    if now - looked >= SLOW_SECONDS then
        looked = now
        requests.visit(now - SLOW_SECONDS, settle)
        _M.serve()
    end
end

_M.end_try = end_try
_M.release = release

return _M
