-- The retry budget: how many requests of a class may be tried on another
-- server, so that a failure of all of them is not multiplied by the tries.
--
-- Pure. A bucket of tokens for each class and worker: each request puts in
-- retry_ratio, each second this worker's part of retries_per_second, and each
-- retry takes 1. nginx decides on a retry by itself, so it is told with each
-- try whether that is to be the last; requests in flight may thereby overdraw
-- the bucket, and those that come after pay for it.
--
-- An upstream (a table of the caller's) has retry_ratio, retries_per_second,
-- and gets retry_tokens.
local max = math.max
local min = math.min

-- What is saved, or owed, is at most so many seconds' worth of the minimum,
-- and at least MIN_BURST: a server that dies with all that it had in flight is
-- covered, and after it retries are back within this time.
local BURST_SECONDS = 10
local MIN_BURST = 10

local _M = {}


local function burst(upstream)
    return max(MIN_BURST, BURST_SECONDS * upstream.retries_per_second)
end


-- Begins with a full bucket.
function _M.open(upstream)
    upstream.retry_tokens = burst(upstream)
end


-- A request comes.
function _M.add(upstream)
    upstream.retry_tokens = min(upstream.retry_tokens + upstream.retry_ratio,
                                burst(upstream))
end


-- So many seconds have passed, in one of `workers`.
function _M.refill(upstream, seconds, workers)
    upstream.retry_tokens = min(
        upstream.retry_tokens
        + upstream.retries_per_second * seconds / workers,
        burst(upstream))
end


-- A request is tried again.
function _M.spend(upstream)
    upstream.retry_tokens = max(upstream.retry_tokens - 1, -burst(upstream))
end


-- Whether one may be.
function _M.may(upstream)
    return upstream.retry_tokens >= 1
end


return _M
