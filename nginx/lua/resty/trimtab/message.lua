-- Protobuf messages described by tables: Lua tables to bytes, and back.
--
-- message{...} takes an array of { number, name, kind } in the order of the
-- numbers (in which protobuf writes) and returns a codec. A kind is the name
-- of one of KINDS or another message; `max` makes the field repeated and is
-- the most entries that decoding accepts. `counted` takes each entry from
-- the budget that decode() is given.
--
-- A google.protobuf.Duration is a number of seconds, nil when absent; so is
-- a message within a message. Everything else that is absent on the wire has
-- its proto3 default in the table: 0, "", false or {}. Encoding leaves
-- defaults out, as every protobuf library does. A Duration that stands twice
-- in a message counts as the last one.
local pb = require("resty.trimtab.protobuf")

local floor = math.floor
local ipairs = ipairs
local pairs = pairs
local type = type

local BYTES = pb.BYTES
local FIXED64 = pb.FIXED64
local read_span = pb.read_span
local read_tag = pb.read_tag
local skip = pb.skip
local write_tag = pb.write_tag

-- Tags of the two fields of a Duration, both varints.
local SECONDS = 1 * 8
local NANOS = 2 * 8
local MAX_NANOS = 999999999
-- Up to here a span is exact, and written as it was read.
local MAX_SECONDS = 2 ^ 53

local _M = {}

-- What the message being decoded may still have of its counted entries.
-- Decoding never yields, so one number is enough.
local budget = 0


local function read_duration(bytes, at, stop)
    local first, last = read_span(bytes, at, stop)
    if not first then
        return nil, last
    end
    local seconds, nanos = 0, 0
    at = first
    while at < last do
        local tag, value, err
        tag, at = read_tag(bytes, at, last)
        if not tag then
            return nil, at
        end
        if tag == SECONDS or tag == NANOS then
            value, at = pb.read_uint(bytes, at, last)
            if not value then
                return nil, at
            end
            if tag == SECONDS then
                seconds = value
            else
                nanos = value
            end
        else
            at, err = skip(bytes, at, last, tag)
            if not at then
                return nil, err
            end
        end
    end
    if nanos > MAX_NANOS then
        return nil, "nanos beyond a second"
    end
    local value = seconds + nanos / 1e9
    if value >= MAX_SECONDS then
        return nil, "span beyond 2^53 seconds"
    end
    return value, last
end


local function write_duration(w, value)
    if type(value) ~= "number" or not (value >= 0 and value < MAX_SECONDS) then
        return pb.refuse(w, value, "a span of 0 to 2^53 seconds")
    end
    local mark = pb.open(w)
    local seconds = floor(value)
    local nanos = floor((value - seconds) * 1e9 + 0.5)
    if nanos > MAX_NANOS then
        seconds, nanos = seconds + 1, 0
    end
    if seconds > 0 then
        write_tag(w, SECONDS)
        pb.write_uint(w, seconds)
    end
    if nanos > 0 then
        write_tag(w, NANOS)
        pb.write_uint(w, nanos)
    end
    pb.close(w, mark)
end


-- Kinds of single values; `absent` is the default that is not written.
local KINDS = {
    uint64 = { wire = pb.VARINT, absent = 0,
               read = pb.read_uint, write = pb.write_uint },
    bool = { wire = pb.VARINT, absent = false,
             read = pb.read_bool, write = pb.write_bool },
    double = { wire = FIXED64, absent = 0,
               read = pb.read_double, write = pb.write_double },
    string = { wire = BYTES, absent = "",
               read = pb.read_string, write = pb.write_string },
    duration = { wire = BYTES,
                 read = read_duration, write = write_duration },
}


local function new_table(fields)
    local t = {}
    for i = 1, #fields do
        local field = fields[i]
        if field.max then
            t[field.name] = {}
        else
            t[field.name] = field.absent
        end
    end
    return t
end


-- Decodes bytes [at, stop) into t. Returns nil, or an error.
local function decode(fields, bytes, at, stop, t)
    local readers = fields.readers
    while at < stop do
        local tag, err
        tag, at = read_tag(bytes, at, stop)
        if not tag then
            return at
        end
        local read = readers[tag]
        if read then
            at, err = read(bytes, at, stop, t)
        else
            at, err = skip(bytes, at, stop, tag)
        end
        if not at then
            return err
        end
    end
end


-- The readers of a field take (bytes, at, stop, t), set t's field and return
-- the next offset, or nil and an error.
local function single_reader(field)
    local name, read = field.name, field.read
    return function(bytes, at, stop, t)
        local value, next_at = read(bytes, at, stop)
        if value == nil then
            return nil, name .. ": " .. next_at
        end
        t[name] = value
        return next_at
    end
end


local function repeated_reader(field)
    local name, read, max = field.name, field.read, field.max
    return function(bytes, at, stop, t)
        local value, next_at = read(bytes, at, stop)
        if value == nil then
            return nil, name .. ": " .. next_at
        end
        local list = t[name]
        local count = #list
        if count == max then
            return nil, name .. ": more than " .. max
        end
        list[count + 1] = value
        return next_at
    end
end


local function packed_reader(field)
    local name, read, max = field.name, field.read, field.max
    return function(bytes, at, stop, t)
        local first, last = read_span(bytes, at, stop)
        if not first then
            return nil, name .. ": " .. last
        end
        local list = t[name]
        local count = #list
        at = first
        while at < last do
            local value, next_at = read(bytes, at, last)
            if value == nil then
                return nil, name .. ": " .. next_at
            end
            if count == max then
                return nil, name .. ": more than " .. max
            end
            count = count + 1
            list[count] = value
            at = next_at
        end
        return last
    end
end


local function message_reader(field)
    local name, max, fields = field.name, field.max, field.message
    local counted = field.counted
    return function(bytes, at, stop, t)
        local first, last = read_span(bytes, at, stop)
        if not first then
            return nil, name .. ": " .. last
        end
        local inner
        if max then
            local list = t[name]
            local count = #list
            if counted then
                budget = budget - 1
            end
            if count == max or budget < 0 then
                return nil, name .. ": too many"
            end
            inner = new_table(fields)
            list[count + 1] = inner
        else
            inner = t[name] or new_table(fields)
            t[name] = inner
        end
        local err = decode(fields, bytes, first, last, inner)
        if err then
            return nil, name .. ": " .. err
        end
        return last
    end
end


local encode


local function write_message(w, field, t)
    write_tag(w, field.tag)
    local mark = pb.open(w)
    encode(field.message, w, t)
    pb.close(w, mark)
end


local function write_list(w, field, list)
    local write = field.write
    if field.message then
        for i = 1, #list do
            write_message(w, field, list[i])
        end
    elseif field.wire == BYTES then
        for i = 1, #list do
            write_tag(w, field.tag)
            write(w, list[i])
        end
    elseif #list > 0 then
        write_tag(w, field.tag)
        local mark = pb.open(w)
        for i = 1, #list do
            write(w, list[i])
        end
        pb.close(w, mark)
    end
end


local function is_absent(field, value)
    if value == nil then
        return true
    end
    -- Minus zero is a value: it has a bit set.
    return value == field.absent
           and not (field.wire == FIXED64 and 1 / value < 0)
end


function encode(fields, w, t)
    for i = 1, #fields do
        local field = fields[i]
        local value = t[field.name]
        if w.err then
            return
        elseif is_absent(field, value) then -- luacheck: ignore 542
            -- Defaults are not written.
        elseif field.max then
            write_list(w, field, value)
        elseif field.message then
            write_message(w, field, value)
        else
            write_tag(w, field.tag)
            field.write(w, value)
        end
        if w.err then
            w.err = field.name .. ": " .. w.err
        end
    end
end


-- Makes a message of its fields, which it completes in place.
function _M.message(fields)
    fields.readers = {}
    for _, field in ipairs(fields) do
        local number, kind = field[1], field[3]
        field.name = field[2]
        field.wire = BYTES
        if type(kind) == "table" then
            field.message = kind
        else
            for key, value in pairs(KINDS[kind]) do
                field[key] = value
            end
        end
        local reader = field.message and message_reader
                       or field.max and repeated_reader or single_reader
        field.tag = number * 8 + field.wire
        fields.readers[field.tag] = reader(field)
        if field.max and field.wire ~= BYTES then
            -- Numbers are written packed, and read in both forms.
            field.tag = number * 8 + BYTES
            fields.readers[field.tag] = packed_reader(field)
        end
    end
    return fields
end


-- The bytes of table t, or nil and an error.
function _M.encode(fields, t)
    local w = pb.new_writer()
    encode(fields, w, t)
    return pb.finish(w)
end


-- The table in the bytes s, or nil and an error. At most `most` entries of
-- the counted fields.
function _M.decode(fields, s, most)
    budget = most
    local t = new_table(fields)
    local err = decode(fields, pb.bytes(s), 0, #s, t)
    if err then
        return nil, err
    end
    return t
end


return _M
