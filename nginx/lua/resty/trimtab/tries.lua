-- Reads nginx's own account of a request's tries, for those that nginx's own
-- balancer placed.
--
-- $upstream_addr, $upstream_status and $upstream_response_time are lists of
-- the same length: entries separated by ", " (tries) and " : " (internal
-- redirects), "-" for what is absent.
local gmatch = string.gmatch
local gsub = string.gsub
local tonumber = tonumber

local _M = {}


local function split(list)
    local entries = {}
    for word in gmatch(list, "%S+") do
        if word ~= ":" then
            entries[#entries + 1] = gsub(word, ",$", "")
        end
    end
    return entries
end


-- The tries, in order: { address =, status = (0: none), seconds = }.
function _M.parse(addresses, statuses, times)
    local tries = {}
    statuses, times = split(statuses or ""), split(times or "")
    for t, address in ipairs(split(addresses or "")) do
        tries[t] = {
            address = address,
            status = tonumber(statuses[t]) or 0,
            seconds = tonumber(times[t]) or 0,
        }
    end
    return tries
end


return _M
