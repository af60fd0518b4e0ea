-- What test_status.py has nginx do with the status documents.
local json = require("resty.trimtab.json")
local status = require("resty.trimtab.status")

local _M = {}


-- The text of a document ("vts" or "document") of a snapshot.
function _M.make(request)
    for _, upstream in ipairs(request.snapshot.upstreams) do
        for _, peer in ipairs(upstream.peers) do
            if request.broken then
                peer.effective_weight = 0 / 0
                peer.weight = math.huge
                peer.in_flight = -1
            end
        end
    end
    return { text = json.encode(
        status[request.document](request.snapshot, request.page)) }
end


-- JSON of values that need care.
function _M.values()
    return {
        empty_object = json.encode({}),
        empty_array = json.encode(json.array({})),
        nested = json.encode({ a = json.array({}), b = { {}, { 1 } } }),
        nan = json.encode({ 0 / 0, math.huge, -math.huge }),
        numbers = json.encode({ 0, -0, 1, -5, 0.1, 1 / 3, 1e300, 1e-7,
                                2 ^ 53 - 1, 123456789012345678 }),
        text = json.encode('a"b\\c/\n\1\127\195\164'),
        others = json.encode({ true, false, print }),
    }
end


return _M
