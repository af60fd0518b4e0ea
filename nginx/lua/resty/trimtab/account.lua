-- nginx's own account of a request's last try: status, time, and bytes.
--
-- The same is in variables, each of which takes a look into a hash, a string
-- made by nginx, and its way back to a number: a microsecond a request in
-- all. Here it is read where nginx keeps it, in the request's array of
-- upstream states. What nginx says of its structs is checked: that the
-- request is one, that the array belongs to the request's pool and has
-- elements of the expected size, at each request; and that the numbers are
-- those of the variables, at the first requests of a worker. Where anything
-- is not as expected the variables are read, for good.
local ffi = require("ffi")
local variables = require("resty.trimtab.variables")

local ERR = ngx.ERR
local abs = math.abs
local cast = ffi.cast
local last_number = variables.last_number
local ngx_log = ngx.log
local off = require("jit").off
local sizeof = ffi.sizeof
local tonumber = tonumber

ffi.cdef[[
typedef struct {
    char *elements;
    uintptr_t count;
    size_t size;
    uintptr_t capacity;
    void *pool;
} trimtab_array;

/* How ngx_http_request_t begins, with NGX_HTTP_CACHE. */
typedef struct {
    uint32_t signature;
    void *connection, *contexts, *main, *server, *location;
    void *read_handler, *write_handler, *cache, *upstream;
    trimtab_array *states;
    void *pool;
} trimtab_request;

/* ngx_http_upstream_state_t; times in milliseconds. */
typedef struct {
    uintptr_t status;
    intptr_t response_time, connect_time, header_time, queue_time;
    int64_t response_length, bytes_received, bytes_sent;
    void *peer;
} trimtab_state;
]]

-- "HTTP", as nginx has it.
local SIGNATURE = 0x50545448
local STATE_BYTES = sizeof("trimtab_state")
-- Requests that are compared with the variables.
local CHECKED = 100

local _M = {}

local is_read = false
-- Of those that are still to be compared.
local unchecked = 0


-- Reads nginx's structs from now on. Without it, the variables.
function _M.open()
    is_read, unchecked = true, CHECKED
end


-- The variables' words for it.
local function by_variables(request)
    local status = last_number(request, "upstream_status")
    if not status then
        return nil
    end
    return status,
           last_number(request, "upstream_response_time") or -1,
           last_number(request, "upstream_response_length") or -1,
           last_number(request, "upstream_bytes_received") or -1
end


-- The last try of a request: its status (-1: none), response time in seconds,
-- bytes of the body, and bytes in all; -1 where that is not known. Returns
-- nil where the request was not passed on.
function _M.last(request)
    if not is_read then
        return by_variables(request)
    end
    local r = cast("trimtab_request *", request)
    local states = r.states
    if r.signature ~= SIGNATURE or states == nil or states.pool ~= r.pool
       or states.size ~= STATE_BYTES or states.count == 0
    then
        return by_variables(request)
    end
    local count = tonumber(states.count)
    local state = cast("trimtab_state *", states.elements)[count - 1]
    local status, seconds = -1, -1
    local length, received = -1, -1
    -- nginx separates internal redirects by an element without a peer.
    if state.peer ~= nil or count == 1 then
        if state.status > 0 then
            status = tonumber(state.status)
        end
        if state.response_time >= 0 then
            seconds = tonumber(state.response_time) / 1000
        end
        length = tonumber(state.response_length)
        received = tonumber(state.bytes_received)
    end
    return status, seconds, length, received
end


-- Compares this request's with the variables. Returns whether others are to
-- be compared as well.
function _M.check(request)
    local status, seconds, length, received = _M.last(request)
    local s, t, l, b = by_variables(request)
    if s ~= status or s and (abs(t - seconds) > 1e-6 or l ~= length
                             or b ~= received)
    then
        is_read, unchecked = false, 0
        ngx_log(ERR, "trimtab: this nginx keeps its account of requests in ",
                "another form: reading variables instead")
    end
    unchecked = unchecked - 1
    return unchecked > 0
end

-- Not worth a trace.
off(_M.check)


return _M
