-- Reads trimtab.json, which the renderer writes beside nginx.conf.
--
-- {"format":1,"instance":"name","interval_seconds":1.0,
--  "bridge":"127.0.0.1:18081","balance":true,
--  "upstreams":[{"name":"compose_backend","priority":3,
--                "deadline_seconds":0.15,"timeout_seconds":60,
--                "hold":"auto","max_waiting":10000,"max_wait_seconds":60,
--                "peers":[{"address":"127.0.0.1:9001","slots":2,
--                          "weight":1}]}]}
--
-- deadline_seconds and slots are absent (or null) when unknown, a peer may
-- have "discipline":"ps" or "fifo" (see rule.lua; when absent the policy
-- server's word holds, and without one it is a queue), and what
-- concerns waiting has defaults: hold "auto", max_waiting 10000, and
-- max_wait_seconds that of timeout_seconds, 60. So has what concerns health
-- (see HEALTH below) and retries: retry_non_idempotent false, retry_stalled
-- true, and try_timeout_seconds, absent, that of timeout_seconds. What is wrong
-- raises an error that nginx prints before it refuses to start, or to reload.
local cjson = require("cjson.safe")

local error = error
local find = string.find
local format = string.format
local ipairs = ipairs
local match = string.match
local open = io.open
local type = type
local unpack = unpack

local FORMAT = 1
local HOLDS = { auto = true, on = true, off = true }
-- Of a class, over all workers: some 20 MB of requests that wait.
local MAX_WAITING = 10000
-- What concerns health: key, default, least, most. docs/health.md says why.
local HEALTH = {
    { "eject_failures", 3, 0, 1e6 },
    { "eject_error_ratio", 0.5, 0.01, 1 },
    { "eject_stall_seconds", 0.1, 0, 86400 },
    { "eject_seconds", 1, 0.01, 86400 },
    { "eject_max_seconds", 60, 0.01, 86400 },
    { "eject_max_ratio", 0.5, 0, 1 },
    { "slow_start_seconds", 0, 0, 86400 },
    { "retry_ratio", 0.2, 0, 1 },
    { "retries_per_second", 10, 0, 1e6 },
    { "check_interval_seconds", 2, 0.1, 86400 },
    { "check_timeout_seconds", 1, 0.01, 3600 },
    { "check_failures", 3, 1, 1000 },
    { "check_successes", 2, 1, 1000 },
    -- What nginx begins with; 0: nobody says, and nothing bounds retries.
    { "tries", 0, 0, 65535 },
}
-- nginx's own default for a server's answer.
local TIMEOUT_SECONDS = 60
-- As in the proto.
local MAX_NAME_BYTES = 255
local MAX_UPSTREAMS = 256

local _M = {}


local function fail(path, what, value)
    error(format("trimtab: %s: %s, not %s; render it anew", path, what,
                 cjson.encode(value) or "null"), 0)
end


local function number(path, value, low, high, what)
    if type(value) ~= "number" or not (value >= low and value <= high) then
        fail(path, format("%s must be a number from %g to %g", what, low,
                          high), value)
    end
    return value
end


local function optional(path, value, low, high, what)
    if value == nil or value == cjson.null then
        return nil
    end
    return number(path, value, low, high, what)
end


local function name(path, value, what)
    if type(value) ~= "string" or #value < 1 or #value > MAX_NAME_BYTES
       or find(value, "[^\33-\126]")
    then
        fail(path, what .. " must be 1 to 255 printable characters", value)
    end
    return value
end


local function list(path, value, what)
    if type(value) ~= "table" or #value == 0 then
        fail(path, what .. " must be a list of at least one", value)
    end
    return value
end


-- Whether nginx can connect to it without resolving a name.
local function is_literal(address)
    return find(address, "^unix:/") ~= nil
           or find(address, "^%[[%x:.]+%]:%d+$") ~= nil
           or find(address, "^%d+%.%d+%.%d+%.%d+:%d+$") ~= nil
end


local function read_peer(path, value, where)
    if type(value) ~= "table" then
        fail(path, where .. " must be an object", value)
    end
    local address = name(path, value.address, "address in " .. where)
    where = address .. " in " .. where
    local discipline = value.discipline or "fifo"
    if discipline ~= "fifo" and discipline ~= "ps" then
        fail(path, "discipline of " .. where .. ' must be "fifo" or "ps"',
             discipline)
    end
    return {
        address = address,
        is_literal = is_literal(address),
        slots = optional(path, value.slots, 1, 65535, "slots of " .. where)
                or 0,
        is_sharing = discipline == "ps",
        is_discipline_given = value.discipline ~= nil,
        weight = optional(path, value.weight, 1e-6, 1e6,
                          "weight of " .. where) or 1,
    }
end


-- Whether a key is true; where it is absent, `default`, or false.
local function flag(path, value, what, default)
    if value == nil or value == cjson.null then
        return default or false
    end
    if type(value) ~= "boolean" then
        fail(path, what .. " must be true or false", value)
    end
    return value
end


local function read_health(path, value, settings)
    for _, key in ipairs(HEALTH) do
        local what, default, low, high = unpack(key)
        settings[what] = optional(path, value[what], low, high,
                                  what .. " of " .. settings.name)
                         or default
    end
    settings.retry_non_idempotent = flag(
        path, value.retry_non_idempotent,
        "retry_non_idempotent of " .. settings.name)
    settings.retry_stalled = flag(path, value.retry_stalled,
                                  "retry_stalled of " .. settings.name, true)
    local check = value.check_path
    if check ~= nil and check ~= cjson.null then
        if type(check) ~= "string" or not find(check, "^/[\33-\126]*$") then
            fail(path, "check_path of " .. settings.name
                       .. " must be a path of printable characters", check)
        end
        settings.check_path = check
    end
    return settings
end


local function read_upstream(path, value)
    if type(value) ~= "table" then
        fail(path, "an upstream must be an object", value)
    end
    local upstream = name(path, value.name, "name of an upstream")
    local peers, seen = {}, {}
    for p, peer in ipairs(list(path, value.peers, "peers of " .. upstream)) do
        peers[p] = read_peer(path, peer, upstream)
        local address = peers[p].address
        if seen[address] then
            fail(path, "peers of " .. upstream .. " must differ", address)
        end
        seen[address] = true
    end
    local hold = value.hold or "auto"
    if not HOLDS[hold] then
        fail(path, "hold of " .. upstream .. ' must be "auto", "on" or "off"',
             hold)
    end
    local timeout = optional(path, value.timeout_seconds, 0.001, 86400,
                             "timeout_seconds of " .. upstream)
                    or TIMEOUT_SECONDS
    return read_health(path, value, {
        name = upstream,
        hold = hold,
        timeout_seconds = timeout,
        try_timeout_seconds = optional(path, value.try_timeout_seconds, 0.001,
                                       86400, "try_timeout_seconds of "
                                              .. upstream) or 0,
        max_waiting = optional(path, value.max_waiting, 0, 1e6,
                               "max_waiting of " .. upstream)
                      or MAX_WAITING,
        max_wait_seconds = optional(path, value.max_wait_seconds, 0.001, 86400,
                                    "max_wait_seconds of " .. upstream)
                           or timeout,
        priority = optional(path, value.priority, 1, 1000,
                            "priority of " .. upstream) or 1,
        deadline_seconds = optional(path, value.deadline_seconds, 1e-6, 86400,
                                    "deadline_seconds of " .. upstream),
        peers = peers,
    })
end


-- The settings in the text of a file named `path`. Raises.
function _M.parse(text, path)
    local t, err = cjson.decode(text)
    if type(t) ~= "table" then
        error(format("trimtab: %s is not JSON: %s; render it anew", path,
                     err or "not an object"), 0)
    end
    if t.format ~= FORMAT then
        fail(path, "format must be " .. FORMAT, t.format)
    end
    local bridge = name(path, t.bridge, "bridge")
    local host, port = match(bridge, "^(.+):(%d+)$")
    if not host and not find(bridge, "^unix:/") then
        fail(path, 'bridge must be "HOST:PORT" or "unix:/path"', bridge)
    end
    if t.balance ~= nil and type(t.balance) ~= "boolean" then
        fail(path, "balance must be true or false", t.balance)
    end
    local upstreams, seen = {}, {}
    local addresses, address_count, pair_count = {}, 0, 0
    for u, upstream in ipairs(list(path, t.upstreams, "upstreams")) do
        upstreams[u] = read_upstream(path, upstream)
        if seen[upstreams[u].name] then
            fail(path, "names of upstreams must differ", upstreams[u].name)
        end
        seen[upstreams[u].name] = true
        for _, peer in ipairs(upstreams[u].peers) do
            pair_count = pair_count + 1
            if not addresses[peer.address] then
                addresses[peer.address] = true
                address_count = address_count + 1
            end
        end
    end
    if #upstreams > MAX_UPSTREAMS then
        fail(path, "at most " .. MAX_UPSTREAMS .. " upstreams", #upstreams)
    end
    return {
        instance = name(path, t.instance, "instance"),
        interval_seconds = number(path, t.interval_seconds, 0.05, 60,
                                  "interval_seconds"),
        bridge = bridge,
        bridge_host = host or bridge,
        bridge_port = tonumber(port),
        balance = t.balance ~= false,
        upstreams = upstreams,
        address_count = address_count,
        pair_count = pair_count,
    }
end


-- The settings in a file. Raises.
function _M.read(path)
    local file, err = open(path, "rb")
    if not file then
        error("trimtab: failed to open " .. err .. "; render it", 0)
    end
    local text = file:read("*a")
    file:close()
    return _M.parse(text or "", path)
end


return _M
