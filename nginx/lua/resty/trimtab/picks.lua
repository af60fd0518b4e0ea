-- The last picks of each class, and why: what the rule saw of each candidate
-- when it picked. For people who ask why a request went where it went.
--
-- A sample: in each worker at most one pick of a class in SAMPLE_SECONDS is
-- kept, the last KEPT of them, in the worker's row of the shared mapping (8
-- kB a class). So a pick costs a comparison of two numbers, and with a few
-- requests a second all of them are there.
local counters = require("resty.trimtab.counters")
local mapping = require("resty.trimtab.mapping")

local array = require("resty.trimtab.json").array
local huge = math.huge
local in_flight_at = counters.in_flight_at
local max = math.max
local min = math.min
local off = require("jit").off
local sort = table.sort
local tonumber = tonumber

local KEPT, CANDIDATES = mapping.PICKS, mapping.CANDIDATES
-- 16 picks are then the last three seconds at least.
local SAMPLE_SECONDS = 0.2

local _M = {}

local own


-- Keeps picks in this row.
function _M.open(row)
    own = row
end


local function keep(picks, upstream, record, p, scores, now)
    local pick = picks.kept[picks.count % KEPT]
    picks.until_seconds = now + SAMPLE_SECONDS
    picks.count = picks.count + 1
    pick.at_seconds = now
    pick.waited_seconds = max(0, now - record.arrival)
    pick.tries = record.tries
    pick.server = upstream.server[p]
    -- Of many the best.
    local found = {}
    for q = 0, upstream.count - 1 do
        if scores and (scores[q] < huge or q == p) then
            found[#found + 1] = q
        end
    end
    if #found > CANDIDATES then
        sort(found, function(a, b) return scores[a] < scores[b] end)
    end
    local count = min(#found, CANDIDATES)
    pick.candidates = count
    for c = 1, count do
        local candidate = pick.candidate[c - 1]
        local i = upstream.server[found[c]]
        candidate.server = i
        candidate.score = scores[found[c]]
        candidate.in_flight = in_flight_at(i)
    end
end

-- Rare, and of no use in a trace.
off(keep)


-- A try of this record goes to peer p of its upstream, which had these scores
-- (an array by peer; infinite where it might not be picked), or none, where
-- it probes the peer. Called before the try is counted.
function _M.sample(upstream, record, p, scores, now)
    local picks = own.picks[upstream.index]
    if now >= picks.until_seconds then
        keep(picks, upstream, record, p, scores, now)
    end
end


-- The newest picks of an upstream over these rows, newest first, as tables
-- for JSON; `addresses` are names by server index.
function _M.recent(rows, upstream, addresses, now)
    local all = {}
    for _, row in ipairs(rows) do
        local picks = row.picks[upstream.index]
        for k = 0, min(tonumber(picks.count), KEPT) - 1 do
            local pick = picks.kept[k]
            local candidates = {}
            for c = 0, tonumber(pick.candidates) - 1 do
                local candidate = pick.candidate[c]
                candidates[#candidates + 1] = {
                    address = addresses[tonumber(candidate.server)],
                    score_seconds = tonumber(candidate.score),
                    in_flight = tonumber(candidate.in_flight),
                }
            end
            all[#all + 1] = {
                address = addresses[tonumber(pick.server)],
                age_seconds = max(0, now - tonumber(pick.at_seconds)),
                waited_seconds = tonumber(pick.waited_seconds),
                tries = tonumber(pick.tries),
                candidates = array(candidates),
            }
        end
    end
    sort(all, function(a, b) return a.age_seconds < b.age_seconds end)
    for k = #all, KEPT + 1, -1 do
        all[k] = nil
    end
    return all
end


return _M
