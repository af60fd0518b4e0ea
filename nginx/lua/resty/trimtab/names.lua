-- The names in the shared mapping: upstreams, addresses, and the pairs of them
-- in use, in the order of their first appearance.
--
-- Only ever appended to, by the master alone (init_by_lua, one process, before
-- the workers fork), so an index keeps its meaning over reloads.
local ffi = require("ffi")
local mapping = require("resty.trimtab.mapping")

local MAX_UPSTREAMS = mapping.MAX_UPSTREAMS
local copy = ffi.copy
local error = error
local ffi_string = ffi.string
local format = string.format
local tonumber = tonumber

local _M = {}


local function name_at(names, index)
    return ffi_string(names[index].text, names[index].length)
end


local function index_of(names, count, text)
    for i = 0, count - 1 do
        if names[i].length == #text and name_at(names, i) == text then
            return i
        end
    end
end


-- The index of a name, appended where it is new. `field` counts the names in
-- the head.
local function intern(map, names, field, capacity, text, what)
    local count = tonumber(map.head[field])
    local index = index_of(names, count, text)
    if index then
        return index
    end
    if count >= capacity then
        error(format("trimtab: the counters have room for %d %s, all taken "
                     .. "since nginx started (removed ones count): restart "
                     .. "nginx", capacity, what), 0)
    end
    names[count].length = #text
    copy(names[count].text, text, #text)
    map.head[field] = count + 1
    return count
end


-- Index of an upstream. Master only (init_by_lua); raises when full.
function _M.upstream_index(map, name)
    return intern(map, map.upstream_names, "upstreams", MAX_UPSTREAMS, name,
                  "upstreams")
end


-- Index of an address, likewise.
function _M.address_index(map, address)
    local head = map.head
    local before = tonumber(head.addresses)
    local index = intern(map, map.address_names, "addresses",
                         tonumber(head.address_capacity), address,
                         "addresses")
    if index == before then
        map.rate[index] = 1
    end
    return index
end


-- Index of a pair of upstream and address, likewise.
function _M.pair_index(map, upstream, address)
    local count = tonumber(map.head.pairs)
    local pair_names = map.pair_names
    for i = 0, count - 1 do
        if pair_names[i].upstream == upstream
           and pair_names[i].address == address
        then
            return i
        end
    end
    local capacity = tonumber(map.head.pair_capacity)
    if count >= capacity then
        error(format("trimtab: the counters have room for %d pairs of "
                     .. "upstream and peer, all taken since nginx started "
                     .. "(removed ones count): restart nginx", capacity), 0)
    end
    pair_names[count].upstream = upstream
    pair_names[count].address = address
    map.head.pairs = count + 1
    return count
end


return _M
