-- Lets nginx's wait for an answer end before its time.
--
-- nginx times each wait by a timer of the connection's read event, kept in a
-- tree by the millisecond when it is due. end_wait() puts the one of a request
-- forward to now. nginx's event loop then finds it due and does what it does
-- when a server has taken too long: where another try is allowed, it tries
-- another one. So no step of nginx's is taken here, and none out of turn.
--
-- The structs that lead there have been the same in all versions of nginx
-- that lua-nginx-module knows. Still, nothing is taken for granted: a request
-- must be one, the connection must point back to it and the event to the
-- connection, the timer must be due within the time that was set, and must
-- hang in nginx's tree. Where anything is otherwise nothing is done.
local ffi = require("ffi")
require("resty.trimtab.account")

local C = ffi.C
local band = require("bit").band
local cast = ffi.cast
local off = require("jit").off
local pcall = pcall
local tonumber = tonumber

ffi.cdef[[
typedef struct trimtab_node_s {
    uintptr_t key;          /* milliseconds, when it is due */
    struct trimtab_node_s *left, *right, *parent;
} trimtab_node;

typedef struct { trimtab_node *root; } trimtab_tree;

/* ngx_event_t */
typedef struct {
    void *data;             /* the connection */
    uint32_t flags;
    int available;
    void *handler;
    uintptr_t index;
    void *log;
    trimtab_node timer;
} trimtab_event;

/* ngx_connection_t */
typedef struct { void *data; trimtab_event *read, *write; } trimtab_connection;

/* ngx_http_upstream_t, and the begin of its ngx_peer_connection_t. */
typedef struct {
    void *read_handler, *write_handler;
    trimtab_connection *connection;
} trimtab_peer;

uintptr_t trimtab_milliseconds __asm__("ngx_current_msec");
trimtab_tree trimtab_timers __asm__("ngx_event_timer_rbtree");
void trimtab_tree_insert(trimtab_tree *, trimtab_node *)
    __asm__("ngx_rbtree_insert");
void trimtab_tree_delete(trimtab_tree *, trimtab_node *)
    __asm__("ngx_rbtree_delete");
]]

-- "HTTP", as nginx has it.
local SIGNATURE = 0x50545448
-- The twelfth flag of an event: its timer is in the tree.
local TIMER_SET = 0x800
-- A timer that nginx need not move is left as it was, up to so long.
local LAZY_MILLISECONDS = 300
-- A red-black tree of a million timers is 40 high.
local MAX_HEIGHT = 64

local _M = {}

local can_end = pcall(function()
    return C.trimtab_milliseconds, C.trimtab_timers, C.trimtab_tree_insert,
           C.trimtab_tree_delete
end)


local function is_in_tree(node)
    local root = C.trimtab_timers.root
    for _ = 1, MAX_HEIGHT do
        if node == root then
            return true
        end
        node = node.parent
        if node == nil then
            return false
        end
    end
    return false
end


-- The event whose timer bounds the wait of this request, of `seconds` at most,
-- for the first byte of its server's answer; nil where it waits for another.
local function waiting_event(request, seconds)
    local r = cast("trimtab_request *", request)
    if r.signature ~= SIGNATURE or r.upstream == nil then
        return nil
    end
    local c = cast("trimtab_peer *", r.upstream).connection
    if c == nil or c.data ~= cast("void *", request) then
        return nil
    end
    local event = c.read
    if event == nil or event.data ~= cast("void *", c)
       or band(event.flags, TIMER_SET) == 0
    then
        return nil
    end
    local left = tonumber(cast("intptr_t", event.timer.key
                                           - C.trimtab_milliseconds))
    if left <= 0 or left > seconds * 1000 + LAZY_MILLISECONDS then
        return nil
    end
    return event
end


-- Ends the wait of a request (a pointer to nginx's) for its server, which may
-- be of `seconds`. Returns whether it does wait, and so will be tried again.
function _M.end_wait(request, seconds)
    if not can_end then
        return false
    end
    local event = waiting_event(request, seconds)
    if not event or not is_in_tree(event.timer) then
        return false
    end
    C.trimtab_tree_delete(C.trimtab_timers, event.timer)
    event.timer.key = C.trimtab_milliseconds
    C.trimtab_tree_insert(C.trimtab_timers, event.timer)
    return true
end

-- Rare, and so not worth a trace.
off(is_in_tree)
off(waiting_event)
off(_M.end_wait)


return _M
