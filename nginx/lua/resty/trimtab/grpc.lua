-- Unary gRPC calls to the policy server, without a C module.
--
-- A cosocket speaks plain HTTP/1.1 to a server of this nginx on loopback
-- (the bridge), whose grpc_pass speaks HTTP/2 to the policy server:
--
--     server {
--         listen 127.0.0.1:18081;
--         client_max_body_size 8m;
--         location /trimtab.v1.PolicyService/ {
--             grpc_pass grpc://trimtab_policy;
--             grpc_set_header TE trailers;
--             grpc_next_upstream error non_idempotent;
--         }
--     }
--
-- Errors never leave by error(): a timer may call this without pcall.
local byte = string.byte
local char = string.char
local concat = table.concat
local find = string.find
local floor = math.floor
local format = string.format
local gsub = string.gsub
local lower = string.lower
local match = string.match
local max = math.max
local now = ngx.now
local pcall = pcall
local sub = string.sub
local tcp = ngx.socket.tcp
local tonumber = tonumber
local tostring = tostring
local update_time = ngx.update_time

local PATH = "/trimtab.v1.PolicyService/"

-- The proto's bound of a message, and the 5 bytes before it.
local MAX_BODY = 8 * 1024 * 1024 + 5
-- What nginx accepts of an upstream's header is 8 KB by default.
local MAX_LINE = 8192
local MAX_LINES = 100
-- A status message longer than this would only fill the log.
local MAX_MESSAGE = 500
-- A kept connection may have been closed by a reload: two calls run at
-- most, so two may be stale before a new one is made.
local ATTEMPTS = 3
-- Kept connections: the refresh and the report, side by side.
local POOL = 2
-- Longer than any interval, shorter than keepalive_timeout's usual 75 s.
local KEEPALIVE_MS = 65000

-- gRPC status codes.
local OK = 0
local UNKNOWN = 2
local DEADLINE_EXCEEDED = 4
local RESOURCE_EXHAUSTED = 8
local INTERNAL = 13
local UNAVAILABLE = 14

-- What HTTP says where gRPC did not get to speak (gRPC's own mapping, with
-- 504 made a timeout and 413 too large).
local STATUS_OF_HTTP = {
    [400] = INTERNAL,
    [401] = 16,
    [403] = 7,
    [404] = 12,
    [413] = RESOURCE_EXHAUSTED,
    [429] = UNAVAILABLE,
    [502] = UNAVAILABLE,
    [503] = UNAVAILABLE,
    [504] = DEADLINE_EXCEEDED,
}

local _M = {}


local function remaining_ms(deadline)
    update_time()
    return floor((deadline - now()) * 1000)
end


-- Bounds the next operation by what is left of the call.
local function set_timeout(sock, deadline)
    -- A timeout of 0 would mean the configured default.
    sock:settimeout(max(1, remaining_ms(deadline)))
end


local function transport_error(what, err)
    err = tostring(err)
    return nil, "failed to " .. what .. ": " .. err,
           err == "timeout" and DEADLINE_EXCEEDED or UNAVAILABLE
end


local function malformed(what)
    return nil, "malformed answer: " .. what, INTERNAL
end


-- One line without its end. Returns nil, err, status.
local function read_line(answer)
    set_timeout(answer.sock, answer.deadline)
    local line, err = answer.next_line(MAX_LINE)
    if not line then
        return transport_error("receive", err or "closed")
    end
    -- The iterator says nil, nil when the line ended within the bound.
    local more
    more, err = answer.next_line(1)
    if more then
        return malformed("line of more than " .. MAX_LINE .. " bytes")
    end
    if err then
        return transport_error("receive", err)
    end
    return line
end


-- Reads "Name: value" lines up to the empty one into answer.headers.
local function read_headers(answer)
    for _ = 1, MAX_LINES do
        local line, err, status = read_line(answer)
        if not line then
            return nil, err, status
        end
        if line == "" then
            return true
        end
        local name, value = match(line, "^([^%s:]+):%s*(.-)%s*$")
        if not name then
            return malformed("header line without a name")
        end
        answer.headers[lower(name)] = value
    end
    return malformed("more than " .. MAX_LINES .. " header lines")
end


local function read_bytes(answer, count)
    if count == 0 then
        return ""
    end
    set_timeout(answer.sock, answer.deadline)
    local bytes, err = answer.sock:receive(count)
    if not bytes then
        return transport_error("receive", err)
    end
    return bytes
end


local function too_large()
    return nil, "answer of more than " .. MAX_BODY .. " bytes",
           RESOURCE_EXHAUSTED
end


local function read_chunked(answer)
    local parts, total = {}, 0
    while true do
        local line, err, status = read_line(answer)
        if not line then
            return nil, err, status
        end
        local size = tonumber(match(line, "^%x+") or "", 16)
        if not size then
            return malformed("chunk without a size")
        end
        if size == 0 then
            local done
            done, err, status = read_headers(answer)
            if not done then
                return nil, err, status
            end
            return concat(parts)
        end
        total = total + size
        if total > MAX_BODY then
            return too_large()
        end
        local bytes
        bytes, err, status = read_bytes(answer, size + 2)
        if not bytes then
            return nil, err, status
        end
        if sub(bytes, -2) ~= "\r\n" then
            return malformed("chunk without an end")
        end
        parts[#parts + 1] = sub(bytes, 1, -3)
    end
end


local function read_body(answer)
    local coding = answer.headers["transfer-encoding"]
    if coding then
        if lower(coding) ~= "chunked" then
            return malformed("transfer coding other than chunked")
        end
        return read_chunked(answer)
    end
    local length = match(answer.headers["content-length"] or "", "^%d+$")
    if not length then
        return malformed("no length")
    end
    if tonumber(length) > MAX_BODY then
        return too_large()
    end
    return read_bytes(answer, tonumber(length))
end


-- Sends the request and reads the whole answer: answer.http_status,
-- .headers (trailers included), .body. Returns true, or nil, err, status.
local function exchange(answer, request)
    local sock = answer.sock
    set_timeout(sock, answer.deadline)
    local sent, send_err = sock:send(request)
    if not sent then
        return transport_error("send", send_err)
    end
    answer.next_line = sock:receiveuntil("\r\n")
    local line, err, status = read_line(answer)
    if not line then
        return nil, err, status
    end
    answer.has_begun = true
    answer.http_status = tonumber(match(line, "^HTTP/1%.1 (%d%d%d)"))
    if not answer.http_status then
        return malformed("not HTTP/1.1")
    end
    local done
    done, err, status = read_headers(answer)
    if not done then
        return nil, err, status
    end
    answer.body, err, status = read_body(answer)
    if not answer.body then
        return nil, err, status
    end
    return true
end


local function unescape(hex)
    return char(tonumber(hex, 16))
end


-- A grpc-message as one printable line.
local function readable(message)
    message = gsub(message or "", "%%(%x%x)", unescape)
    message = gsub(message, "[%c\128-\255]", "?")
    return sub(message, 1, MAX_MESSAGE)
end


-- The message in a whole answer, or nil, err, status.
local function interpret(answer)
    local status = answer.headers["grpc-status"]
    if answer.http_status ~= 200 then
        local http = answer.http_status
        return nil, "the bridge answered " .. http
                    .. (http == 502 and ", the policy server is down" or ""),
               STATUS_OF_HTTP[http] or UNKNOWN
    end
    if not status then
        return malformed("no grpc-status")
    end
    if not find(status, "^%d%d?$") then
        return malformed("bad grpc-status")
    end
    status = tonumber(status)
    if status ~= OK then
        return nil, "status " .. status .. ": "
                    .. readable(answer.headers["grpc-message"]), status
    end
    local body = answer.body
    if #body < 5 then
        return malformed("no message")
    end
    local flag, a, b, c, d = byte(body, 1, 5)
    if flag ~= 0 then
        return malformed("a compressed message")
    end
    if #body - 5 ~= ((a * 256 + b) * 256 + c) * 256 + d then
        return malformed("not one whole message")
    end
    return sub(body, 6), nil, OK
end


local function frame(message)
    local size = #message
    return char(0, floor(size / 2 ^ 24) % 256, floor(size / 2 ^ 16) % 256,
                floor(size / 2 ^ 8) % 256, size % 256) .. message
end


local function call(host, port, method, message, timeout_ms)
    update_time()
    local deadline = now() + timeout_ms / 1000
    local body = frame(message)
    local pool_options = { pool_size = POOL }
    for attempt = 1, ATTEMPTS do
        local sock, err = tcp()
        if not sock then
            return transport_error("make a socket", err)
        end
        local connected
        set_timeout(sock, deadline)
        if port then
            connected, err = sock:connect(host, port, pool_options)
        else
            connected, err = sock:connect(host, pool_options)
        end
        if not connected then
            local address = port and host .. ":" .. port or host
            return transport_error("connect to " .. address, err)
        end
        local is_reused = sock:getreusedtimes() > 0
        local answer = { sock = sock, deadline = deadline, headers = {} }
        local request = concat({
            "POST ", PATH, method, " HTTP/1.1\r\n",
            "Host: trimtab\r\n",
            "Content-Type: application/grpc\r\n",
            "TE: trailers\r\n",
            format("grpc-timeout: %dm\r\n", max(1, remaining_ms(deadline))),
            "Content-Length: ", #body, "\r\n\r\n",
            body,
        })
        local done, status
        done, err, status = exchange(answer, request)
        if done then
            local connection = answer.headers["connection"]
            if connection and lower(connection) == "close" then
                sock:close()
            else
                sock:setkeepalive(KEEPALIVE_MS, POOL)
            end
            return interpret(answer)
        end
        sock:close()
        local is_stale = is_reused and not answer.has_begun
                         and status == UNAVAILABLE
        if not is_stale or attempt == ATTEMPTS then
            return nil, err, status
        end
    end
end


-- Calls a method of the PolicyService with the bytes of its request. Returns
-- the bytes of the response, or nil, an error and a gRPC status code. All
-- methods may be repeated without harm, so a call on a kept connection that
-- turns out to be closed is made again on another. `timeout_ms` bounds the
-- call as a whole. `port` is nil for a host of "unix:/path".
function _M.call(host, port, method, message, timeout_ms)
    local ok, response, err, status = pcall(call, host, port, method,
                                            message, timeout_ms)
    if not ok then
        return nil, "failed to call " .. tostring(method) .. ": "
                    .. tostring(response), INTERNAL
    end
    return response, err, status
end


return _M
