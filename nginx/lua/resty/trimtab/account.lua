-- nginx's own account of a request's last try: status, time, and bytes; and
-- the lengths of the request and of the announced answer.
--
-- The same is in variables, each of which takes a look into a hash, a string
-- made by nginx, and its way back to a number: a microsecond a request in
-- all. Here it is read where nginx keeps it, in the request's array of
-- upstream states. What nginx says of its structs is checked: that the
-- request is one, that the array belongs to the request's pool and has
-- elements of the expected size, at each request; and that the numbers are
-- those of the variables, at the first requests of a worker. Where anything
-- is not as expected the variables are read, for good.
--
-- The lengths are deep in the structs, where each version of nginx has another
-- layout: they are read only from a version whose layout is known.
local ffi = require("ffi")
local variables = require("resty.trimtab.variables")

local ERR = ngx.ERR
local abs = math.abs
local cast = ffi.cast
local last_number = variables.last_number
local nginx_version = ngx.config.nginx_version
local ngx_log = ngx.log
local off = require("jit").off
local sizeof = ffi.sizeof
local tonumber = tonumber
local whole_number = variables.whole_number

ffi.cdef[[
typedef struct {
    char *elements;
    uintptr_t count;
    size_t size;
    uintptr_t capacity;
    void *pool;
} trimtab_array;

/* ngx_http_upstream_t of 1.22, with NGX_COMPAT. */
typedef struct {
    char before[728];
    int64_t announced;      /* headers_in.content_length_n */
} trimtab_upstream;

/* ngx_http_request_t, with NGX_HTTP_CACHE; from `between` on that of 1.22,
   with NGX_COMPAT. */
typedef struct {
    uint32_t signature;
    void *connection, *contexts, *main, *server, *location;
    void *read_handler, *write_handler, *cache;
    trimtab_upstream *upstream;
    trimtab_array *states;
    void *pool;
    char between[1152];
    int64_t length;         /* request_length */
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
-- Those with an announced length may be rare; after so many requests without
-- enough of them the variable is read for good.
local MOST_CHECKED = 10 * CHECKED
-- 1.22.0 and 1.22.1, as ngx.config has them.
local LENGTHS_FROM, LENGTHS_TO = 1022000, 1022001

local _M = {}

local is_read, has_lengths, has_announced = false, false, false
-- Of those that are still to be compared, and with an announced length.
local unchecked, unannounced, compared = 0, 0, 0


-- Reads nginx's structs from now on. Without it, the variables.
function _M.open()
    is_read, unchecked, unannounced, compared = true, CHECKED, CHECKED, 0
    has_lengths = nginx_version >= LENGTHS_FROM
                  and nginx_version <= LENGTHS_TO
    has_announced = false
end


-- The bytes of a request, its headers included.
function _M.request_length(request)
    if has_lengths then
        local r = cast("trimtab_request *", request)
        if r.signature == SIGNATURE then
            return tonumber(r.length)
        end
    end
    return whole_number(request, "request_length") or 0
end


local function read_announced(request)
    local r = cast("trimtab_request *", request)
    if r.signature == SIGNATURE and r.upstream ~= nil then
        return tonumber(r.upstream.announced)
    end
    return -1
end


-- The bytes of the body that the last peer announced, -1 where it did not.
function _M.announced(request)
    if has_announced then
        return read_announced(request)
    end
    return whole_number(request, "upstream_http_content_length") or -1
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
           last_number(request, "upstream_bytes_received") or -1,
           last_number(request, "upstream_header_time") or -1
end


-- nginx's states of the tries of a request, or nil.
local function states_of(request)
    local r = cast("trimtab_request *", request)
    local states = r.states
    if r.signature ~= SIGNATURE or states == nil or states.pool ~= r.pool
       or states.size ~= STATE_BYTES or states.count == 0
    then
        return nil
    end
    return states
end


-- Whether is_unanswered() knows.
function _M.knows()
    return is_read
end


-- Whether the last try of a request is under way, and nothing of the answer
-- is here; false where that is not known.
function _M.is_unanswered(request)
    local states = is_read and states_of(request)
    if not states then
        return false
    end
    local count = tonumber(states.count)
    local state = cast("trimtab_state *", states.elements)[count - 1]
    return state.header_time < 0 and state.bytes_received == 0
           and state.response_time < 0
end


-- The last try of a request: its status (-1: none), response time in seconds,
-- bytes of the body, bytes in all, and the seconds to the end of the answer's
-- head; -1 where that is not known. Returns nil where the request was not
-- passed on.
function _M.last(request)
    if not is_read then
        return by_variables(request)
    end
    local states = states_of(request)
    if not states then
        return by_variables(request)
    end
    local count = tonumber(states.count)
    local state = cast("trimtab_state *", states.elements)[count - 1]
    local status, seconds, head = -1, -1, -1
    local length, received = -1, -1
    -- nginx separates internal redirects by an element without a peer.
    if state.peer ~= nil or count == 1 then
        if state.status > 0 then
            status = tonumber(state.status)
        end
        if state.response_time >= 0 then
            seconds = tonumber(state.response_time) / 1000
        end
        if state.header_time >= 0 then
            head = tonumber(state.header_time) / 1000
        end
        length = tonumber(state.response_length)
        received = tonumber(state.bytes_received)
    end
    return status, seconds, length, received, head
end


-- The same, where nginx has the whole answer of the last try, however far its
-- client has read. Returns nil while it comes; and for an nginx that is asked
-- by variables, as each of those takes memory of the request.
function _M.done(request)
    if not is_read then
        return nil
    end
    local r = cast("trimtab_request *", request)
    if r.signature ~= SIGNATURE or r.states == nil or r.states.count == 0 then
        return nil
    end
    local status, seconds, length, received, head = _M.last(request)
    if status and seconds >= 0 then
        return status, seconds, length, received, head
    end
end


local function complain(what)
    ngx_log(ERR, "trimtab: this nginx keeps ", what, " of requests in ",
            "another form: reading variables instead")
end


local function check_last(request)
    local status, seconds, length, received, head = _M.last(request)
    local s, t, l, b, h = by_variables(request)
    if s ~= status or s and (abs(t - seconds) > 1e-6 or l ~= length
                             or b ~= received or abs(h - head) > 1e-6)
    then
        is_read = false
        complain("its account")
    end
end


local function check_lengths(request)
    if whole_number(request, "request_length") ~= _M.request_length(request)
    then
        has_lengths = false
        return complain("the length")
    end
    local announced = whole_number(request, "upstream_http_content_length")
    -- A body without a length has none in the struct either, but so would
    -- much else.
    if announced and announced > 0 then
        if announced ~= read_announced(request) then
            has_lengths = false
            return complain("the announced length")
        end
        unannounced = unannounced - 1
    end
end


-- Compares this request's with the variables. Returns whether others are to
-- be compared as well.
function _M.check(request)
    compared = compared + 1
    if is_read and unchecked > 0 then
        unchecked = unchecked - 1
        check_last(request)
    end
    if has_lengths then
        check_lengths(request)
        has_announced = has_lengths and unannounced <= 0
    end
    return is_read and unchecked > 0
           or has_lengths and not has_announced and compared < MOST_CHECKED
end

-- Not worth a trace.
off(_M.check)


return _M
