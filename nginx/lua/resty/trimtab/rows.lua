-- Who owns which row of the shared mapping.
--
-- A worker takes a row when it starts, and the row is his until he is dead.
-- Counters of a row survive its worker: the next owner counts on, and rows
-- are summed whether owned or not. The gauges of a dead worker are dropped
-- (its connections to the peers are closed): by the worker that nginx starts
-- in its place, which has the same row, or by the sweep of any other.
local libc = require("resty.trimtab.libc")
local mapping = require("resty.trimtab.mapping")

local clock = libc.monotonic
local is_alive = libc.is_alive
local max = math.max
local next = next
local pairs = pairs
local tonumber = tonumber

local _M = {}


-- Drops what a dead worker had in flight.
local function clear(head, row, now)
    for i = 0, tonumber(head.addresses) - 1 do
        row.in_flight[i] = 0
        row.work[i] = 0
        row.claims[i] = 0
        row.claimed[i] = 0
        row.probes[i] = 0
        row.value[i] = 0
    end
    for i = 0, tonumber(head.pairs) - 1 do
        local pair = row.pairs[i]
        pair.in_flight_seconds = pair.in_flight_seconds
                                 + pair.in_flight * max(0, now - pair.last)
        pair.in_flight = 0
        pair.last = now
    end
    for i = 0, tonumber(head.upstreams) - 1 do
        row.classes[i].in_flight = 0
        row.classes[i].waiting = 0
    end
    row.room.waiting = 0
end


-- Takes a row for this worker. The usual one is of its generation and id; a
-- respawned worker thereby clears what its predecessor left. Where an older
-- worker still drains there, a free one of another generation.
-- Returns the row, or nil when every candidate is in use.
function _M.claim(map, dict, pid, generation, id)
    local head = map.head
    local stride = tonumber(head.stride)
    local row
    mapping.locked(dict, function()
        for g = 0, mapping.GENERATIONS - 1 do
            local index = (generation + g) % mapping.GENERATIONS * stride + id
            local owner = map.owners[index]
            local holder = tonumber(owner.pid)
            if holder == 0 or holder == pid or not is_alive(holder) then
                row = mapping.row(map, index)
                clear(head, row, clock())
                owner.pid = pid
                owner.generation = generation
                owner.id = id
                owner.port = 0
                owner.claims = owner.claims + 1
                head.rows_stamp = head.rows_stamp + 1
                return
            end
        end
    end)
    return row
end


-- Drops the gauges of rows whose worker is gone. From a timer.
function _M.sweep(map, dict)
    local head = map.head
    local dead = {}
    for i = 0, tonumber(head.rows) - 1 do
        local pid = tonumber(map.owners[i].pid)
        if pid ~= 0 and not is_alive(pid) then
            dead[i] = pid
        end
    end
    if not next(dead) then
        return 0
    end
    local count = 0
    mapping.locked(dict, function()
        local now = clock()
        for i, pid in pairs(dead) do
            -- It may have been respawned, or swept by another, meanwhile.
            if map.owners[i].pid == pid then
                clear(head, mapping.row(map, i), now)
                map.owners[i].pid = 0
                head.rows_stamp = head.rows_stamp + 1
                count = count + 1
            end
        end
    end)
    return count
end


return _M
