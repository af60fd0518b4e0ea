-- Proto3 wire format: readers and writers of single values.
--
-- Which fields a message has is not known here; see resty.trimtab.policy.
-- A reader takes (bytes, at, stop): a `const uint8_t *`, the offset to read
-- at and the offset of the end. It returns the value and the next offset, or
-- nil and an error; it never throws and never reads beyond `stop`.
-- A writer appends to a buffer made by new_writer(). The first value that
-- cannot be written is remembered, and finish() returns it as an error.
--
-- Whole numbers are Lua numbers, exact up to 2^53. Beyond it there is an
-- error and no rounding: a rounded generation would equal its neighbour.
local ffi = require("ffi")
local bit = require("bit")

local band = bit.band
local bor = bit.bor
local floor = math.floor
local huge = math.huge
local rshift = bit.rshift
local tostring = tostring
local type = type

ffi.cdef([[
void *memmove(void *to, const void *from, size_t bytes);
]])

local C = ffi.C
local const_bytes = ffi.typeof("const uint8_t *")
local new_bytes = ffi.typeof("uint8_t[?]")
local double_bits = ffi.new("union { double value; uint32_t word[2]; }")

-- The word of a double that holds its exponent, and where that sits in it.
local HIGH = ffi.abi("le") and 1 or 0
local EXPONENT = 0x7ff00000

local VARINT, FIXED64, BYTES, OPEN, CLOSE, FIXED32 = 0, 1, 2, 3, 4, 5

-- Largest whole number up to which doubles are exact.
local MAX_INTEGER = 2 ^ 53
-- A tag is a 32-bit number; field numbers have 29 bits.
local MAX_TAG = 2 ^ 32 - 1
-- Depth of nested unknown groups; what Google's own parsers allow.
local MAX_DEPTH = 100
-- First size of a buffer: a report of ten peers.
local FIRST_BYTES = 4096

local _M = {
    VARINT = VARINT,
    FIXED64 = FIXED64,
    BYTES = BYTES,
    MAX_INTEGER = MAX_INTEGER,
}


-- The readable form of a string. Keep the string alive while it is in use.
function _M.bytes(s)
    return ffi.cast(const_bytes, s)
end


-- Up to four groups of 7 bits: their value, the next offset, and whether
-- the varint goes on. Nil when truncated. Without a loop, as put_varint.
local function read_groups(bytes, at, stop)
    if at >= stop then
        return nil
    end
    local byte = bytes[at]
    if byte < 128 then
        return byte, at + 1, false
    end
    local value = byte - 128
    if at + 1 >= stop then
        return nil
    end
    byte = bytes[at + 1]
    if byte < 128 then
        return value + byte * 2 ^ 7, at + 2, false
    end
    value = value + (byte - 128) * 2 ^ 7
    if at + 2 >= stop then
        return nil
    end
    byte = bytes[at + 2]
    if byte < 128 then
        return value + byte * 2 ^ 14, at + 3, false
    end
    value = value + (byte - 128) * 2 ^ 14
    if at + 3 >= stop then
        return nil
    end
    byte = bytes[at + 3]
    return value + band(byte, 127) * 2 ^ 21, at + 4, byte >= 128
end


local function read_uint(bytes, at, stop)
    local low, next_at, has_more = read_groups(bytes, at, stop)
    if not low then
        return nil, "truncated"
    end
    if not has_more then
        return low, next_at
    end
    local high, top
    high, next_at, has_more = read_groups(bytes, next_at, stop)
    if has_more then
        top, next_at, has_more = read_groups(bytes, next_at, stop)
    else
        top = 0
    end
    if not high or not top then
        return nil, "truncated"
    end
    if has_more or next_at - at > 10 then
        return nil, "varint of more than 10 bytes"
    end
    -- Each part is exact by itself.
    if top > 0 or high > 2 ^ 25 or high == 2 ^ 25 and low > 0 then
        return nil, "whole number beyond 2^53"
    end
    return high * 2 ^ 28 + low, next_at
end
_M.read_uint = read_uint


-- Field number times 8 plus wire type.
function _M.read_tag(bytes, at, stop)
    local tag, next_at = read_uint(bytes, at, stop)
    if not tag then
        return nil, next_at
    end
    if tag < 8 or tag > MAX_TAG then
        return nil, "bad field number"
    end
    return tag, next_at
end


function _M.read_bool(bytes, at, stop)
    local value, next_at = read_uint(bytes, at, stop)
    if not value then
        return nil, next_at
    end
    return value ~= 0, next_at
end


-- A double that is infinite or no number is an error. This must be seen in
-- its bits: LuaJIT marks its own types by NaNs and does not clean one that
-- comes out of the FFI.
function _M.read_double(bytes, at, stop)
    if at + 8 > stop then
        return nil, "truncated"
    end
    ffi.copy(double_bits, bytes + at, 8)
    if band(double_bits.word[HIGH], EXPONENT) == EXPONENT then
        return nil, "number not finite"
    end
    return double_bits.value, at + 8
end


-- Offset of the first byte and of the end of a length-delimited value.
local function read_span(bytes, at, stop)
    local size, first = read_uint(bytes, at, stop)
    if not size then
        return nil, first
    end
    if size > stop - first then
        return nil, "truncated"
    end
    return first, first + size
end
_M.read_span = read_span


function _M.read_string(bytes, at, stop)
    local first, last = read_span(bytes, at, stop)
    if not first then
        return nil, last
    end
    return ffi.string(bytes + first, last - first), last
end


-- Passes over a varint of any value, which may be beyond 2^53.
local function skip_varint(bytes, at, stop)
    for i = at, at + 9 do
        if i >= stop then
            return nil, "truncated"
        end
        if bytes[i] < 128 then
            return i + 1
        end
    end
    return nil, "varint of more than 10 bytes"
end


-- The offset behind the value whose tag was just read, or nil and an error.
local function skip(bytes, at, stop, tag, depth)
    local wire = tag % 8
    if wire == VARINT then
        return skip_varint(bytes, at, stop)
    end
    if wire == BYTES then
        local first, last = read_span(bytes, at, stop)
        return first and last, last
    end
    if wire == FIXED64 or wire == FIXED32 then
        at = at + (wire == FIXED64 and 8 or 4)
        if at > stop then
            return nil, "truncated"
        end
        return at
    end
    if wire ~= OPEN then
        return nil, wire == CLOSE and "group closed that was not opened"
                    or "unknown wire type"
    end
    depth = (depth or 0) + 1
    if depth > MAX_DEPTH then
        return nil, "groups nested too deeply"
    end
    local inner, err
    while true do
        inner, at = _M.read_tag(bytes, at, stop)
        if not inner then
            return nil, at
        end
        if inner % 8 == CLOSE then
            if inner - CLOSE ~= tag - OPEN then
                return nil, "group closed that was not opened"
            end
            return at
        end
        at, err = skip(bytes, at, stop, inner, depth)
        if not at then
            return nil, err
        end
    end
end
_M.skip = skip


function _M.new_writer()
    return { bytes = new_bytes(FIRST_BYTES), size = 0, room = FIRST_BYTES }
end


-- What was written, as a string; or nil and the first error.
function _M.finish(w)
    if w.err then
        return nil, w.err
    end
    return ffi.string(w.bytes, w.size)
end


local function reserve(w, count)
    local need = w.size + count
    if need > w.room then
        local room = w.room
        while room < need do
            room = room * 2
        end
        local bytes = new_bytes(room)
        ffi.copy(bytes, w.bytes, w.size)
        w.bytes, w.room = bytes, room
    end
end


-- Remembers the first value that cannot be written.
local function refuse(w, value, meaning)
    w.err = w.err or tostring(value) .. " is not " .. meaning
end
_M.refuse = refuse


-- A varint of a value known to be whole and from 0 to 2^53. Without a loop:
-- faster, and the JIT compiler of LuaJIT 2.1-20230119 (Debian 12) was seen to
-- compile the caller's loop wrongly when there was one here.
local put_varint


function put_varint(w, value)
    reserve(w, 10)
    local bytes, at = w.bytes, w.size
    local high = 0
    if value >= 2 ^ 28 then
        high = floor(value / 2 ^ 28)
        value = value - high * 2 ^ 28
    elseif value < 128 then
        bytes[at] = value
        w.size = at + 1
        return
    elseif value < 2 ^ 14 then
        bytes[at] = bor(band(value, 127), 128)
        bytes[at + 1] = rshift(value, 7)
        w.size = at + 2
        return
    end
    bytes[at] = bor(band(value, 127), 128)
    bytes[at + 1] = bor(band(rshift(value, 7), 127), 128)
    if high == 0 and value < 2 ^ 21 then
        bytes[at + 2] = rshift(value, 14)
        w.size = at + 3
        return
    end
    bytes[at + 2] = bor(band(rshift(value, 14), 127), 128)
    if high == 0 then
        bytes[at + 3] = rshift(value, 21)
        w.size = at + 4
        return
    end
    bytes[at + 3] = bor(rshift(value, 21), 128)
    w.size = at + 4
    -- At most 2^25, so this goes no deeper.
    return put_varint(w, high)
end
_M.write_tag = put_varint


function _M.write_uint(w, value)
    if type(value) ~= "number" or not (value >= 0 and value <= MAX_INTEGER)
       or value ~= floor(value)
    then
        return refuse(w, value, "a whole number from 0 to 2^53")
    end
    put_varint(w, value)
end


function _M.write_bool(w, value)
    put_varint(w, value and 1 or 0)
end


function _M.write_double(w, value)
    if type(value) ~= "number" or not (value > -huge and value < huge) then
        return refuse(w, value, "a finite number")
    end
    reserve(w, 8)
    double_bits.value = value
    ffi.copy(w.bytes + w.size, double_bits, 8)
    w.size = w.size + 8
end


function _M.write_string(w, value)
    if type(value) ~= "string" then
        return refuse(w, value, "a string")
    end
    put_varint(w, #value)
    reserve(w, #value)
    ffi.copy(w.bytes + w.size, value, #value)
    w.size = w.size + #value
end


-- Begins a length-delimited value; hand the mark to close().
function _M.open(w)
    reserve(w, 1)
    w.size = w.size + 1
    return w.size
end


-- Ends the value begun at `mark`. One byte was left for its length; a longer
-- length moves the value.
function _M.close(w, mark)
    local size = w.size - mark
    if size < 128 then
        w.bytes[mark - 1] = size
        return
    end
    local extra = size < 2 ^ 14 and 1 or size < 2 ^ 21 and 2
                  or size < 2 ^ 28 and 3 or 4
    reserve(w, 10)
    C.memmove(w.bytes + mark + extra, w.bytes + mark, size)
    w.size = mark - 1
    put_varint(w, size)
    w.size = mark + extra + size
end


return _M
