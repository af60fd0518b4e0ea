-- Active checks: asks servers for a path every so often, from a timer in the
-- worker that leads (see board.lua), and has those ejected that fail a number
-- of times in a row, until they succeed as often as is asked.
--
-- A server is checked as the first upstream with a check_path that names it
-- says. How often in a row a server failed or succeeded is known to the worker
-- that leads alone: one that takes over counts anew, and what is ejected
-- stays so meanwhile.
local board = require("resty.trimtab.board")
local ejection = require("resty.trimtab.ejection")
local libc = require("resty.trimtab.libc")

local clock = libc.monotonic
local find = string.find
local floor = math.floor
local is_exiting = ngx.worker.exiting
local match = string.match
local max = math.max
local min = math.min
local pairs = pairs
local pcall = pcall
local spawn = ngx.thread.spawn
local tcp = ngx.socket.tcp
local tonumber = tonumber

-- Due checks are looked for this often.
local TICK_SECONDS = 0.25
-- So many are under way at once: each has a connection.
local MAX_RUNNING = 64

local _M = {}

local registry
-- Per server index: when it is checked next, whether it is being, and its
-- successes (above 0) or failures (below) in a row.
local next_at, is_running, run = {}, {}, {}
local running = 0


-- Counts a result; returns true, or false, when with it the server is to be
-- taken for well, or not; else nil. Pure: `run` before, and after.
function _M.count(before, is_up, failures, successes)
    if is_up then
        local after = max(before, 0) + 1
        return after, after >= successes or nil
    end
    local after = min(before, 0) - 1
    if after <= -failures then
        return after, false
    end
    return after, nil
end


-- Whether the server answers with a status below 400 in time.
local function ask(address, path, seconds)
    local sock = tcp()
    sock:settimeout(floor(seconds * 1000))
    local ok
    if find(address, "^unix:") then
        ok = sock:connect(address)
    else
        local host, port = match(address, "^(.+):(%d+)$")
        ok = sock:connect(host, tonumber(port))
    end
    if not ok then
        return false
    end
    local host = find(address, "^unix:") and "localhost" or address
    local line
    ok = sock:send("GET " .. path .. " HTTP/1.1\r\nHost: " .. host
                   .. "\r\nUser-Agent: trimtab-check\r\n"
                   .. "Connection: close\r\n\r\n")
    if ok then
        line = sock:receive("*l")
    end
    sock:close()
    local status = tonumber(match(line or "", "^HTTP/1%.%d (%d%d%d)"))
    return status ~= nil and status >= 200 and status < 400
end


local function check(i, upstream)
    local ok, is_up = pcall(ask, registry.address_of[i], upstream.check_path,
                            upstream.check_timeout_seconds)
    local verdict
    run[i], verdict = _M.count(run[i] or 0, ok and is_up,
                               upstream.check_failures,
                               upstream.check_successes)
    if verdict ~= nil and not is_exiting() then
        ejection.checked(upstream, i, verdict, clock())
    end
    is_running[i] = false
    running = running - 1
end


-- Begins the checks that are due. From a timer.
function _M.tick()
    if is_exiting() or not board.leads() then
        run = {}
        return
    end
    local now = clock()
    for i, upstream in pairs(registry.checks) do
        if now >= (next_at[i] or 0) and not is_running[i]
           and running < MAX_RUNNING
        then
            next_at[i] = now + upstream.check_interval_seconds
            is_running[i] = true
            running = running + 1
            spawn(check, i, upstream)
        end
    end
end


-- Checks the servers of this registry. Returns how often tick() is to be
-- called, in seconds, or nil where there is nothing to check.
function _M.open(a_registry)
    registry = a_registry
    local seconds
    for _, upstream in pairs(registry.checks) do
        seconds = min(seconds or TICK_SECONDS, upstream.check_interval_seconds)
    end
    return seconds
end


return _M
