-- How long a scan of a group's peers takes: the reading of the counts of four
-- workers, and the pick. As the hook does it, in nginx's own LuaJIT.
local counters = require("resty.trimtab.counters")
local ffi = require("ffi")
local mapping = require("resty.trimtab.mapping")
local rows = require("resty.trimtab.rows")
local rule = require("resty.trimtab.rule")
local segment = require("resty.trimtab.segment")

local clock = os.clock
local min = math.min
local new = ffi.new
local random = math.random

local WORKERS = 4
local ROUNDS = 7
local LOCK = {
    add = function() return true end,
    delete = function() end,
}
-- As many requests as pass between two times that the numbers change: each
-- change leads through other branches.
local CHANGES = 50


-- Microseconds of one scan of so many peers: the least of some rounds, which
-- other work on the machine disturbs least.
return function(peers, scans)
    local map = assert(mapping.create(peers, peers, WORKERS, 0))
    map.head.generation, map.head.addresses = 1, peers
    local row
    for id = 0, WORKERS - 1 do
        row = rows.claim(map, LOCK, id + 1, 1, id)
        for i = 0, peers - 1 do
            row.in_flight[i] = random(0, 2)
            row.work[i] = 0.01 * row.in_flight[i]
        end
    end
    local function filled(make)
        local array = new("double[?]", peers)
        for p = 0, peers - 1 do
            array[p] = make()
        end
        return array
    end
    local server = new("int[?]", peers)
    for p = 0, peers - 1 do
        server[p] = p
        map.rate[p] = 0.5 + random()
    end
    local slots = filled(function() return random(1, 8) end)
    local one, zero = filled(function() return 1 end), new("double[?]", peers)
    local in_flight, work, scores = new("double[?]", peers),
                                    new("double[?]", peers),
                                    new("double[?]", peers)
    counters.open(map, { servers = {}, slots = slots, prior = one }, row)

    local gather = segment(function()
        counters.gather(peers, server, in_flight, work)
    end)
    local pick = segment(function()
        return rule.pick(peers, server, one, one, zero, 0.01, in_flight, work,
                         map.rate, map.error, slots, zero, random(), scores)
    end)

    local least = math.huge
    for _ = 1, ROUNDS do
        local spent = 0
        for _ = 1, CHANGES do
            row.in_flight[random(0, peers - 1)] = random(0, 4)
            local start = clock()
            for _ = 1, scans do
                local _ = gather[true]
                _ = pick[true]
            end
            spent = spent + clock() - start
        end
        least = min(least, spent / (CHANGES * scans))
    end
    return least * 1e6
end
