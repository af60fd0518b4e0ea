-- What the hook asks of the C library and of nginx itself, by FFI.
--
-- Each function is declared under a name of our own (asm label), so that a
-- declaration of the same function elsewhere in the process cannot clash.
local ffi = require("ffi")

local C = ffi.C
local byte = string.byte
local cast = ffi.cast
local errno = ffi.errno
local new = ffi.new
local open = io.open
local pcall = pcall
local tonumber = tonumber

ffi.cdef[[
typedef struct { long seconds, nanoseconds; } trimtab_timespec;
typedef struct trimtab_cleanup_s {
    void (*handler)(void *);
    void *data;
    struct trimtab_cleanup_s *next;
} trimtab_cleanup;
int trimtab_clock_gettime(int, trimtab_timespec *) __asm__("clock_gettime");
void *trimtab_mmap(void *, size_t, int, int, int, long) __asm__("mmap");
int trimtab_mincore(void *, size_t, unsigned char *) __asm__("mincore");
int trimtab_kill(int, int) __asm__("kill");
int trimtab_usleep(unsigned int) __asm__("usleep");
void trimtab_sem_post(void *) __asm__("sem_post");
trimtab_cleanup *trimtab_cleanup_add(void *, size_t)
    __asm__("ngx_http_cleanup_add");
unsigned long *trimtab_stat_active __asm__("ngx_stat_active");
unsigned long *trimtab_stat_reading __asm__("ngx_stat_reading");
unsigned long *trimtab_stat_writing __asm__("ngx_stat_writing");
unsigned long *trimtab_stat_waiting __asm__("ngx_stat_waiting");
]]

-- Linux, all architectures that LuaJIT runs on.
local CLOCK_MONOTONIC = 1
local PROT_READ_WRITE = 3
local MAP_SHARED_ANONYMOUS_NORESERVE = 0x4021
local ESRCH = 3
local PAGE_BYTES = 4096

local _M = {}

local spec = new("trimtab_timespec")


-- Seconds of the monotonic clock; the same in all processes of a machine.
function _M.monotonic()
    C.trimtab_clock_gettime(CLOCK_MONOTONIC, spec)
    return tonumber(spec.seconds) + tonumber(spec.nanoseconds) * 1e-9
end


-- Anonymous memory, all zero, that forked children share; nil, err.
function _M.map_shared(bytes)
    local address = C.trimtab_mmap(nil, bytes, PROT_READ_WRITE,
                                   MAP_SHARED_ANONYMOUS_NORESERVE, -1, 0)
    if tonumber(cast("intptr_t", address)) == -1 then
        return nil, "failed to map " .. bytes .. " bytes: errno " .. errno()
    end
    return cast("char *", address)
end


-- Whether the page at this address (a number, page aligned) is mapped.
function _M.is_mapped(address)
    local vector = new("unsigned char[1]")
    return C.trimtab_mincore(cast("void *", address), PAGE_BYTES, vector) == 0
end


-- Whether a process of this number exists. One that may not be signalled
-- exists as well.
function _M.is_alive(pid)
    return C.trimtab_kill(pid, 0) == 0 or errno() ~= ESRCH
end


-- A whole number that nobody can guess, of 48 bits; 0 where the system has no
-- random source.
function _M.random()
    local file = open("/dev/urandom", "rb")
    local bytes = file and file:read(6) or ""
    if file then
        file:close()
    end
    local number = 0
    for b = 1, #bytes do
        number = number * 256 + byte(bytes, b)
    end
    return number
end


function _M.sleep(seconds)
    C.trimtab_usleep(seconds * 1e6)
end


local has_cleanup = pcall(function()
    return C.trimtab_cleanup_add, C.trimtab_sem_post
end)


-- Has nginx raise `flag` (32 zero bytes that outlive the request) from 0
-- when it frees this request's main request, whatever else happens to it.
-- Returns false when this nginx cannot.
--
-- An nginx cleanup handler must be a C function of one pointer. sem_post is
-- the one in every C library whose effect is to raise the number behind that
-- pointer, and a zeroed sem_t is a semaphore of value 0.
function _M.raise_when_freed(request, flag)
    if not has_cleanup then
        return false
    end
    local cleanup = C.trimtab_cleanup_add(request, 0)
    if cleanup == nil then
        return false
    end
    cleanup.handler = C.trimtab_sem_post
    cleanup.data = flag
    return true
end


local has_connections = pcall(function()
    return C.trimtab_stat_active
end)


-- nginx's client connections now (active, reading, writing, waiting), or nil
-- where it was built without the stub_status module.
function _M.connections()
    if not has_connections or C.trimtab_stat_active == nil then
        return nil
    end
    return {
        active = tonumber(C.trimtab_stat_active[0]),
        reading = tonumber(C.trimtab_stat_reading[0]),
        writing = tonumber(C.trimtab_stat_writing[0]),
        waiting = tonumber(C.trimtab_stat_waiting[0]),
    }
end


return _M
