-- Pokes between workers: a datagram of three bytes on the loopback interface
-- says "look at your waiting room, this server may have room, and if you do
-- not use it poke the next one, so many times".
--
-- One UDP socket, made in init_by_lua before the workers fork, is what all
-- of them send from. Each worker listens on one of nginx's own, connected to
-- it, so that the event loop wakes the worker and datagrams from elsewhere
-- are not delivered. Its port is not told by Lua's interface: the worker
-- sends its pid and a secret over it to the common socket, where any worker
-- reads the sender's address and enters it in the shared mapping.
--
-- A poke may be lost (a full buffer, a port not known yet); each worker looks
-- at its room every RECHECK_SECONDS anyway. One that has had no request for a
-- second sleeps, and is roused by the next one, with a poke of its own.
local bit = require("bit")
local ffi = require("ffi")

local C = ffi.C
local WARN = ngx.WARN
local byte = string.byte
local errno = ffi.errno
local ffi_string = ffi.string
local format = string.format
local match = string.match
local new = ffi.new
local ngx_log = ngx.log
local sizeof = ffi.sizeof
local tonumber = tonumber
local tostring = tostring

ffi.cdef[[
typedef struct {
    unsigned short family;
    unsigned char port[2];         /* in network order */
    unsigned char address[4];
    char zero[8];
} trimtab_sockaddr;
int trimtab_socket(int, int, int) __asm__("socket");
int trimtab_bind(int, const void *, unsigned int) __asm__("bind");
int trimtab_getsockname(int, void *, unsigned int *)
    __asm__("getsockname");
long trimtab_sendto(int, const void *, size_t, int, const void *,
                    unsigned int) __asm__("sendto");
long trimtab_recvfrom(int, char *, size_t, int, void *, unsigned int *)
    __asm__("recvfrom");
]]

-- Linux.
local AF_INET = 2
-- A poke is never waited for, and an exec'd nginx makes a socket of its own.
local DATAGRAM_NONBLOCK_CLOEXEC = 0x80802
local DONT_WAIT_NO_SIGNAL = 0x4040
-- A poke that is lost costs a waiting request this much at most.
local RECHECK_SECONDS = 0.05
-- An address's index in two bytes, and one.
local MESSAGE_BYTES = 3
-- A worker without requests sleeps after so many looks, which is a second: to
-- be roused costs as much as two of them.
local QUIET_LOOKS = 20
-- So late a worker looks whose own poke is lost, if that is ever.
local SLEEP_SECONDS = 1
-- In the place of a server's index: no server has room.
local NO_SERVER = 65535
-- After so many wake-ups the timer is started anew, so that what nginx keeps
-- for a running timer is freed.
local WAKES = 100000
-- In the shared dict: descriptor and port of the common socket.
local KEY = "wake"

-- is_asleep: whether rouse() is to be called when a request comes.
local _M = { is_asleep = false }

local descriptor, port
-- The shared mapping, and this process.
local map, own_pid
-- Looks in a row without any request.
local quiet = 0
local address = new("trimtab_sockaddr")
local length = new("unsigned int[1]")
local buffer_bytes = 64
local buffer = new("char[?]", buffer_bytes)
local message = new("unsigned char[?]", MESSAGE_BYTES)


local function fill(a_port)
    address.family = AF_INET
    address.port[0] = bit.rshift(a_port, 8)
    address.port[1] = bit.band(a_port, 255)
    address.address[0], address.address[3] = 127, 1
end


-- The local port of a UDP socket on loopback; nil when it is none.
local function port_of(fd)
    length[0] = sizeof(address)
    if C.trimtab_getsockname(fd, address, length) ~= 0
       or address.family ~= AF_INET or address.address[0] ~= 127
    then
        return nil
    end
    return address.port[0] * 256 + address.port[1]
end


-- Finds the socket that an earlier configuration of this master has made, or
-- makes one. Master only (init_by_lua). Returns true; nil, err.
function _M.init(dict)
    local fd, known = match(dict:get(KEY) or "", "^(%d+) (%d+)$")
    if fd and port_of(tonumber(fd)) == tonumber(known) then
        descriptor, port = tonumber(fd), tonumber(known)
        return true
    end
    fd = C.trimtab_socket(AF_INET, DATAGRAM_NONBLOCK_CLOEXEC, 0)
    if fd < 0 then
        return nil, "failed to make a socket: errno " .. errno()
    end
    fill(0)
    if C.trimtab_bind(fd, address, sizeof(address)) ~= 0 then
        return nil, "failed to bind a socket: errno " .. errno()
    end
    descriptor, port = fd, port_of(fd)
    return dict:set(KEY, format("%d %d", descriptor, port))
end


-- Wakes the worker that listens on this port (0 is nobody), as server i has
-- room; `hops` more may be poked after it, at most 255.
function _M.poke(a_port, i, hops)
    if descriptor and a_port > 0 then
        fill(a_port)
        message[0], message[1] = bit.rshift(i, 8), bit.band(i, 255)
        message[2] = hops
        C.trimtab_sendto(descriptor, message, MESSAGE_BYTES,
                         DONT_WAIT_NO_SIGNAL, address, sizeof(address))
    end
end


-- Has this worker look again every RECHECK_SECONDS, from now on.
function _M.rouse()
    _M.is_asleep, quiet = false, 0
    for i = 0, tonumber(map.head.rows) - 1 do
        if map.owners[i].pid == own_pid then
            return _M.poke(tonumber(map.owners[i].port), NO_SERVER, 0)
        end
    end
end


-- Reads who listens where.
local function learn(secret)
    for _ = 1, tonumber(map.head.rows) do
        length[0] = sizeof(address)
        local size = tonumber(C.trimtab_recvfrom(descriptor, buffer,
                                                 buffer_bytes,
                                                 DONT_WAIT_NO_SIGNAL,
                                                 address, length))
        if size < 0 then
            return
        end
        local pid, said = match(ffi_string(buffer, size), "^(%d+) (%d+)$")
        if pid and said == secret then
            for i = 0, tonumber(map.head.rows) - 1 do
                if map.owners[i].pid == tonumber(pid) then
                    map.owners[i].port = address.port[0] * 256
                                         + address.port[1]
                end
            end
        end
    end
end


local function connect()
    local socket = ngx.socket.udp()
    socket:settimeout(RECHECK_SECONDS * 1000)
    local ok, err = socket:setpeername("127.0.0.1", port)
    if not ok then
        return nil, err
    end
    local secret = format("%d", tonumber(map.head.secret))
    ok, err = socket:send(own_pid .. " " .. secret)
    if not ok then
        return nil, err
    end
    learn(secret)
    return socket
end


-- Calls `look(i, hops)` whenever this worker is poked, and look() after
-- RECHECK_SECONDS without a poke, from a timer, until the worker exits and
-- `is_done()` says that nobody waits. Where there are no requests at all,
-- says `is_idle()`, it looks less often.
function _M.listen(a_map, pid, look, is_done, is_idle)
    map, own_pid = a_map, pid

    local seconds

    local function receive(socket)
        quiet = is_idle() and quiet + 1 or 0
        _M.is_asleep = quiet > QUIET_LOOKS
        local patience = _M.is_asleep and SLEEP_SECONDS or RECHECK_SECONDS
        if patience ~= seconds then
            seconds = patience
            socket:settimeout(seconds * 1000)
        end
        return socket:receive(buffer_bytes)
    end

    local function run(premature)
        if premature then
            return
        end
        local socket, err
        if descriptor then
            socket, err = connect()
            seconds = RECHECK_SECONDS
        end
        if err then
            ngx_log(WARN, "trimtab: failed to listen to other workers: ",
                    tostring(err), "; looking every ", RECHECK_SECONDS,
                    " s instead")
        end
        for wakes = 1, math.huge do
            local poke, failed
            if socket then
                poke, failed = receive(socket)
            end
            if poke and #poke == MESSAGE_BYTES then
                local high, low, hops = byte(poke, 1, MESSAGE_BYTES)
                look(high * 256 + low, hops)
            else
                if not poke and failed ~= "timeout" then
                    ngx.sleep(RECHECK_SECONDS)
                end
                look()
            end
            if ngx.worker.exiting() then
                if is_done() then
                    return
                end
            elseif wakes >= WAKES then
                break
            end
        end
        if socket then
            socket:close()
        end
        local ok
        ok, err = ngx.timer.at(0, run)
        if not ok then
            ngx_log(WARN, "trimtab: failed to listen to other workers: ", err)
        end
    end
    return ngx.timer.at(0, run)
end


return _M
