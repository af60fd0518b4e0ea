-- When a server is ejected, when it is tried again, and how it comes back.
--
-- Pure: numbers and a server's health in, a verdict out; no nginx, no clock,
-- no random source. ejection.lua does what is decided here.
--
-- A server's health (a struct of the shared mapping, or any table) has
--     reason       why it is ejected; 0: it is not
--     since        when it was ejected, or came back; seconds, as all times
--     back         when it is tried again; huge: only a check brings it back.
--                  Of a server that is in: not before this, if it is suspect
--     backoff      for how long it was ejected the last time; 0: never
--     streak       failures in a row
--     asked        when the first request since its last answer was sent; 0
--                  when it owes none
--     pace         its rate when it last answered; 0: it never did
--     joined       when its slow start began; 0: none
--     ejections    so far
--
-- Life of a server. It is *in* until it fails (a streak, an error ratio, a
-- stall, or checks); *out* for the back-off, which doubles as long as it fails
-- again soon after; then *half open*: one real request at a time is sent to
-- it, a failure puts it out again, and the first success brings it in, with
-- nothing held against it but the back-off, and a slow start.
--
-- Suspects. The rule avoids a server long before it is ejected, and one that
-- gets nothing can neither be convicted nor acquitted. So one that is in, with
-- an error ratio that costs it requests, is tried as well when it has not been
-- for a while; each success then halves the ratio.
local huge = math.huge
local max = math.max
local min = math.min

-- Reasons.
local FAILURES, ERRORS, STALL, CHECK = 1, 2, 3, 4

-- A peer is worse than another when it fails this many times as often. Where
-- all fail alike it is not the server's fault, and less of them is no help.
local WORSE = 2

-- A server that fails again within so many back-offs of its return has not
-- recovered; after that it starts anew.
local MEMORY_BACKOFFS = 10

-- A stall is silence for so many of the services that are due there, as well
-- as for the configured time: three in ten million of exponential services
-- are longer.
local STALL_SERVICES = 15

-- A server answers when it is silent for less than this part of the time.
local ALONE_RATIO = 0.5

-- The back-off after a stall, in the time that it took to be seen: a server
-- whose garbage is collected is well again soon. It doubles if it is not.
local STALL_BACKOFF = 2

-- One request in flight may just take long: it is silence only when it has
-- taken so many times what none has.
local STALL_IN_FLIGHT = 2
local LONE_LONGEST = 3

-- Where it is not known yet how long an answer may take, in seconds.
local UNKNOWN_LONGEST = 0.25

-- Ejected servers come back within this share of the back-off, so that
-- several balancers do not all try at once.
local SPREAD = 0.1

-- A slow start begins with this share of the weight: enough to be picked now
-- and then, or it would never show how fast it is.
local FIRST_SHARE = 0.1

-- Of a suspect: at this error ratio the rule takes it for 40% slower than it
-- is, which is more than servers differ by chance.
local SUSPICION = 0.02
local ACQUITTAL = 0.5

local _M = {
    FAILURES = FAILURES, ERRORS = ERRORS, STALL = STALL, CHECK = CHECK,
    NAMES = { "failures", "errors", "stall", "check" },
}


-- A try failed at a server of this error ratio (it included). `best_error` is
-- the least error ratio among the other peers of the upstream, huge when
-- there are none. Returns the reason to eject it, or nil.
function _M.failed(health, error, best_error, max_failures, max_error_ratio)
    local streak = health.streak + 1
    health.streak = streak
    if best_error * WORSE >= error then
        return nil
    end
    if max_failures > 0 and streak >= max_failures then
        return FAILURES
    end
    if max_error_ratio < 1 and error >= max_error_ratio then
        return ERRORS
    end
    return nil
end


-- Whether a server is silent: `n` requests of `work` seconds in all are in
-- flight there, at a rate of `rate` when it last answered, and it owes an
-- answer since `asked`. `longest` is what no answer is known to take, huge
-- where that is not known, `seconds` the least that counts; 0: nothing does.
function _M.is_stalled(asked, now, n, work, rate, longest, seconds)
    if seconds <= 0 or asked <= 0 or n < 1 then
        return false
    end
    if n < STALL_IN_FLIGHT then
        longest = LONE_LONGEST * longest
    elseif longest == huge then
        longest = UNKNOWN_LONGEST
    end
    return now - asked > max(seconds, longest,
                             STALL_SERVICES * work / (n * rate))
end


-- Whether a server that is silent since `asked` is so alone: another of the
-- upstream, that is in, answers. Where all are silent it is not their fault.
function _M.is_alone(i, asked, now, count, server, drain, healths)
    for p = 0, count - 1 do
        local health = healths[server[p]]
        if server[p] ~= i and drain[p] == 0 and health.reason == 0
           and (health.asked == 0
                or now - health.asked < ALONE_RATIO * (now - asked))
        then
            return true
        end
    end
    return false
end


-- How many of `count` peers may be ejected at once: at least one where there
-- is another, and never the only one.
function _M.most_ejected(count, max_ratio)
    if count < 2 or max_ratio <= 0 then
        return 0
    end
    return max(1, math.floor(count * max_ratio))
end


-- Ejects a server, for `first` seconds, or twice its last back-off, `most` at
-- most, when it failed soon after its return. `uniform` in [0, 1).
function _M.eject(health, reason, now, first, most, uniform)
    local backoff = first
    if health.backoff > 0
       and (health.reason > 0
            or now - health.since < MEMORY_BACKOFFS * health.backoff)
    then
        backoff = min(2 * health.backoff, most)
    end
    health.backoff = backoff
    health.reason = reason
    health.since = now
    health.back = reason == CHECK and huge
                    or now + backoff * (1 + SPREAD * uniform)
    health.streak = 0
    health.ejections = health.ejections + 1
end


-- The first back-off after a stall since `asked`: `first` seconds at most.
function _M.stall_backoff(asked, now, first)
    return min(first, STALL_BACKOFF * (now - asked))
end


-- Keeps an ejected server out for twice as long, as the request failed that
-- tried it.
function _M.extend(health, now, most, uniform)
    health.backoff = min(2 * health.backoff, most)
    health.back = now + health.backoff * (1 + SPREAD * uniform)
end


-- Brings a server back.
function _M.restore(health, now)
    health.reason = 0
    health.since = now
    health.back = 0
    health.streak = 0
    health.asked = 0
    health.joined = now
end


-- Whether a server of this error ratio is to be tried by a single request,
-- once nobody has for a while (`back`).
function _M.is_in_doubt(health, error)
    return health.reason > 0 or error > SUSPICION
end


-- Whether a request may try such a server now, with `probes` trying it and
-- `n` in flight there. What a silent server still has tries it already: while
-- there is any, no other request is caught there, but for `most` seconds only,
-- as a connection that is held open for ever is in flight as well.
function _M.is_half_open(health, error, now, probes, n, most)
    return (health.reason > 0 or error > SUSPICION) and now >= health.back
           and probes < 1
           and (health.reason ~= STALL or n < 1 or now >= health.since + most)
end


-- The error ratio of a suspect after a request that tried it succeeded.
function _M.acquit(error)
    return error * ACQUITTAL
end


-- The share of its weight that a server has, `seconds` being the length of a
-- slow start (0: none). Rises from FIRST_SHARE to 1.
function _M.share(joined, now, seconds)
    if seconds <= 0 or joined <= 0 or now >= joined + seconds then
        return 1
    end
    return max(FIRST_SHARE, (now - joined) / seconds)
end


-- When a server was last found wanting: ejected, or tried in vain (to within
-- the spread of its back-off); huge for one that checks find so again and
-- again.
local function convicted_at(health)
    return max(health.since, health.back - (1 + SPREAD) * health.backoff)
end


-- Fills skip[p] of an upstream: not 0 where the peer is drained or ejected.
-- Of the ejected ones at most `most` are left out, those whose conviction is
-- the newest: of the others it is known least that they still fail, and their
-- first success brings them in. None is where that would leave nobody: then
-- all that are not drained are used. Returns how many are left out.
function _M.fill_skip(count, server, drain, healths, most, skip)
    local open, ejected = 0, 0
    for p = 0, count - 1 do
        skip[p] = drain[p]
        if drain[p] == 0 then
            open = open + 1
            if healths[server[p]].reason > 0 then
                ejected = ejected + 1
            end
        end
    end
    if ejected == 0 or ejected >= open then
        return 0
    end
    local left = min(ejected, most)
    for _ = 1, left do
        local last, found = -huge, -1
        for p = 0, count - 1 do
            local health = healths[server[p]]
            if skip[p] == 0 and health.reason > 0
               and convicted_at(health) > last
            then
                last, found = convicted_at(health), p
            end
        end
        skip[found] = 1
    end
    return left
end


return _M
