-- The state of each request that this worker holds, keyed by the address of
-- nginx's request structure: it costs nothing to find, and survives internal
-- redirects, which ngx.ctx does not.
--
-- Nothing leaks. nginx raises a record's flag when it frees the request
-- (libc.raise_when_freed), just before the log phase. The log phase ends the
-- record; where none of ours runs (an error_page to a location without our
-- hook, a subrequest), the sweep finds the raised flag. A record found under
-- a reused address is likewise seen to be of a dead request.
--
-- Records are reused, so a request allocates nothing once as many have been
-- made as were ever in flight at once.
local ffi = require("ffi")
local libc = require("resty.trimtab.libc")
local wake = require("resty.trimtab.wake")

local cast = ffi.cast
local new = ffi.new
local next = next
local pairs = pairs
local raise_when_freed = libc.raise_when_freed
local tonumber = tonumber

-- sizeof(sem_t), generously: 16 to 32 bytes in the C libraries of Linux.
local FLAG_BYTES = 64

local _M = {}

local records = {}
local free, free_count = {}, 0
-- Ended while nginx had not yet raised their flag: to be reused after.
local limbo, limbo_count = {}, 0


-- The key of a request.
function _M.key(request)
    -- No tail call: a trace cannot end in one of a built-in function.
    local key = tonumber(cast("uintptr_t", request))
    return key
end


-- The record of a living request, or nil. A second result is a record that
-- a dead request left under the same address: the caller ends it.
function _M.find(key)
    local record = records[key]
    if record and record.flag[0] ~= 0 then
        return nil, record
    end
    return record
end


-- The record under a key, whether its request lives or is being logged.
function _M.get(key)
    return records[key]
end


local function new_record()
    local memory = new("char[?]", FLAG_BYTES)
    return {
        memory = memory,
        flag = cast("int *", memory),
        key = 0,
        upstream = false,    -- of the pass that is under way
        arrival = 0,         -- seconds, when that pass began
        server = -1,         -- of the try under way; -1: none
        position = -1,       -- of its peer in the upstream
        pair = -1,
        work = 0,            -- what the try added to the server's work
        began = 0,           -- seconds, when the try began
        is_unqueued = false, -- it found a free slot
        is_counted = false,  -- in the class's own gauge
        is_bound = false,    -- the try under way waits for its balancer phase
        class = false,       -- in which it waits; see room.lua
        before = false,
        after = false,
        claim = -1,          -- the server that it waits for, if published
        claim_work = 0,
        semaphore = false,   -- to wake it
        is_last = false,     -- nginx was told to try it no more after this
        is_hasty = false,    -- nginx was told of the class's try timeout
        is_rescued = false,  -- nginx is to give up the try under way
        is_probe = false,    -- the try under way tries an ejected server
        is_fallback = false, -- nginx's own balancer places this pass
        is_armed = false,    -- nginx will raise the flag
        entries = 0,         -- of $upstream_addr that are accounted for
        tries = 0,           -- in this pass, by us
        tried = {},          -- their positions, from 1
        answered = -1,       -- seconds of the try, where that ended before
                             -- the client had read its answer
    }
end


-- A record for this request.
function _M.add(request, key)
    if wake.is_asleep then
        wake.rouse()
    end
    local record
    if free_count > 0 then
        record = free[free_count]
        free_count = free_count - 1
    else
        record = new_record()
    end
    record.key = key
    record.entries = 0
    record.is_armed = raise_when_freed(request, record.memory)
    records[key] = record
    return record
end


-- Forgets a record.
function _M.remove(record)
    records[record.key] = nil
    record.upstream = false
    if not record.is_armed or record.flag[0] ~= 0 then
        record.flag[0] = 0
        free_count = free_count + 1
        free[free_count] = record
    else
        limbo_count = limbo_count + 1
        limbo[limbo_count] = record
    end
end


-- Calls `abandon` with each record whose request is gone, which must remove
-- it, and makes what was in limbo reusable. From a timer.
function _M.sweep(abandon)
    for _, record in pairs(records) do
        if record.flag[0] ~= 0 then
            abandon(record)
        end
    end
    local kept = 0
    for l = 1, limbo_count do
        local record = limbo[l]
        if record.flag[0] ~= 0 then
            record.flag[0] = 0
            free_count = free_count + 1
            free[free_count] = record
        else
            kept = kept + 1
            limbo[kept] = record
        end
    end
    for l = kept + 1, limbo_count do
        limbo[l] = nil
    end
    limbo_count = kept
end


-- Calls `look` with the records whose try is under way since before that time,
-- and their requests, which live. `look` may end the try, and must not add or
-- remove records.
function _M.visit(before, look)
    for key, record in pairs(records) do
        if record.server >= 0 and record.began < before
           and not record.is_bound and record.is_armed
           and record.flag[0] == 0
        then
            look(record, cast("void *", cast("uintptr_t", key)))
        end
    end
end


-- Whether this worker has no request.
function _M.are_none()
    return next(records) == nil
end


-- How many records there are: live, free, in limbo.
function _M.counts()
    local live = 0
    for _ in pairs(records) do
        live = live + 1
    end
    return live, free_count, limbo_count
end


return _M
