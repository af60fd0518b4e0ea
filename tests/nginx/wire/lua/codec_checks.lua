-- What test_codec.py has nginx do with the codec. Each function takes
-- the decoded JSON of the request and returns a table for the answer.
local cjson = require("cjson.safe")
local pb = require("resty.trimtab.protobuf")
local policy = require("resty.trimtab.policy")

local char = string.char
local concat = table.concat
local random = math.random
local sub = string.sub

local _M = {}


local function read_file(path)
    local file = assert(io.open(path, "rb"))
    local content = file:read("*a")
    file:close()
    return content
end


-- Where two values differ, or nil. Minus zero differs from zero.
local function difference(a, b, where)
    if type(a) ~= "table" or type(b) ~= "table" then
        local same = a == b and (a ~= 0 or 1 / a == 1 / b)
        if not same then
            return where .. ": " .. tostring(a) .. " ~= " .. tostring(b)
        end
        return nil
    end
    for key in pairs(a) do
        local found = difference(a[key], b[key], where .. "." .. key)
        if found then
            return found
        end
    end
    for key in pairs(b) do
        if a[key] == nil then
            return where .. "." .. key .. ": not expected"
        end
    end
end


-- Turns the bytes of each NAME.bin into the table of NAME.json, and back.
function _M.golden(request)
    local failures = {}
    for _, name in ipairs(request.names) do
        local bytes = read_file(request.directory .. name .. ".bin")
        local case = assert(cjson.decode(
            read_file(request.directory .. name .. ".json")))
        local decoded, err = policy["decode_" .. case.message](bytes)
        local found = err or difference(case.table, decoded, name)
        if not found then
            local encoded
            encoded, err = policy["encode_" .. case.message](case.table)
            found = err or encoded ~= bytes and name .. ": other bytes"
                    or nil
        end
        failures[#failures + 1] = found
    end
    return { checked = #request.names, failures = failures }
end


local function hex(text)
    return (text:gsub("%x%x", function(pair)
        return char(tonumber(pair, 16))
    end))
end


-- Decodes bytes given in hexadecimal.
function _M.decode(request)
    local decoded, err = policy["decode_" .. request.message](
        hex(request.hex))
    return { decoded = decoded, err = err }
end


-- The error of encoding a table that must not be encoded.
function _M.encode(request)
    local value = request.table
    if request.nan then
        value = { clock_seconds = 0 / 0 }
    elseif request.infinite then
        value = { clock_seconds = math.huge }
    end
    local bytes, err = policy["encode_" .. request.message](value)
    return { size = bytes and #bytes, err = err }
end


-- One message of `size` bytes: a string of that many, less its head.
function _M.large(request)
    local head = char(0x12)
    local w = pb.new_writer()
    pb.write_string(w, string.rep("x", request.size - 5))
    local bytes = head .. pb.finish(w)
    local decoded, err = policy.decode_report_stats_response(bytes)
    return { size = #bytes, has_decoded = decoded ~= nil, err = err }
end


local function mutate(bytes)
    local size = #bytes
    local way = random(6)
    local at = random(0, size)
    if way == 1 then
        return sub(bytes, 1, at)
    elseif way == 2 then
        return sub(bytes, 1, at) .. char(random(0, 255))
               .. sub(bytes, at + 2)
    elseif way == 3 then
        return sub(bytes, 1, at) .. char(random(0, 255))
               .. sub(bytes, at + 1)
    elseif way == 4 then
        return sub(bytes, 1, at) .. sub(bytes, at + random(1, 20))
    elseif way == 5 then
        local from = random(0, size)
        return sub(bytes, 1, at) .. sub(bytes, from + 1, from + random(64))
               .. sub(bytes, at + 1)
    end
    local garbage = {}
    for i = 1, random(0, 40) do
        garbage[i] = char(random(0, 255))
    end
    return sub(bytes, 1, at) .. concat(garbage)
end


-- Decodes `rounds` mutations of the named messages with every decoder in
-- turn. What decodes must encode, and decode to the same again.
function _M.fuzz(request)
    math.randomseed(request.seed)
    local decoders = { "get_weights_request", "get_weights_response",
                       "report_stats_request", "report_stats_response" }
    local seeds = {}
    for i, name in ipairs(request.names) do
        seeds[i] = read_file(request.directory .. name .. ".bin")
    end
    local out = { decoded = 0, refused = 0, thrown = {}, unequal = {} }
    for round = 1, request.rounds do
        local bytes = seeds[random(#seeds)]
        for _ = 1, random(3) do
            bytes = mutate(bytes)
        end
        local kind = decoders[round % 4 + 1]
        local ok, t, err = pcall(policy["decode_" .. kind], bytes)
        if not ok then
            out.thrown[#out.thrown + 1] = t
        elseif not t then
            assert(type(err) == "string")
            out.refused = out.refused + 1
        else
            out.decoded = out.decoded + 1
            local again = policy["decode_" .. kind](
                assert(policy["encode_" .. kind](t)))
            local found = difference(t, again, kind)
            out.unequal[#out.unequal + 1] = found
        end
    end
    return out
end


-- Microseconds to decode and to encode the named messages.
function _M.measure(request)
    local out = {}
    for _, name in ipairs(request.names) do
        local bytes = read_file(request.directory .. name .. ".bin")
        local case = assert(cjson.decode(
            read_file(request.directory .. name .. ".json")))
        local decode = policy["decode_" .. case.message]
        local encode = policy["encode_" .. case.message]
        local t = decode(bytes)
        local function time(run, argument)
            for _ = 1, request.rounds do
                run(argument)
            end
            ngx.update_time()
            local start = ngx.now()
            for _ = 1, request.rounds do
                run(argument)
            end
            ngx.update_time()
            return (ngx.now() - start) / request.rounds * 1e6
        end
        out[name] = {
            bytes = #bytes,
            decode_microseconds = time(decode, bytes),
            encode_microseconds = time(encode, t),
        }
    end
    return out
end


return _M
