-- nginx's variables; numbers without making Lua strings.
--
-- ngx.var makes a string a read, and nginx's Lua module writes the name in
-- lower case and hashes it each time. This asks nginx itself, with the hash of
-- the name made once, and parses the bytes where they lie.
require("resty.core.var")

local base = require("resty.core.base")
local ffi = require("ffi")

local C = ffi.C
local FFI_OK = base.FFI_OK
local band = require("bit").band
local byte = string.byte
local ffi_string = ffi.string
local max = math.max
local min = math.min
local new = ffi.new
local pcall = pcall
local tonumber = tonumber

ffi.cdef[[
typedef struct { size_t length; const char *text; } trimtab_text;
/* ngx_variable_value_t: 28 bits of length, and flags. */
typedef struct { uint32_t word; char *text; } trimtab_value;
trimtab_value *trimtab_variable(void *, trimtab_text *, uintptr_t)
    __asm__("ngx_http_get_variable");
]]

local LENGTH_BITS = 0xfffffff
-- A flag; bit fields fill words from the least significant bit on, on all
-- little-endian machines that LuaJIT runs on.
local NOT_FOUND = 0x40000000

local _M = {}

-- Name -> what nginx is asked with: the text belongs to the Lua string, which
-- is the key here and so lives as long.
local texts, hashes = {}, {}
-- What was found last.
local found = new("trimtab_value *[1]")
local value_length = 0


-- An nginx whose functions are not to be found by name.
local has_variable = pcall(function() return C.trimtab_variable end)
-- The longest name asked for, and some.
local lowercase = new("char[64]")
local message, texts_of, length_of = new("char *[1]"), new("char *[1]"),
                                     new("size_t[1]")
local found_there = new("trimtab_value")


local function get_from_lua(request, name)
    if C.ngx_http_lua_ffi_var_get(request, name, #name, lowercase, 0,
                                  texts_of, length_of, message) ~= FFI_OK
    then
        return false
    end
    found_there.text = texts_of[0]
    found[0], value_length = found_there, tonumber(length_of[0])
    return true
end


-- As ngx_hash_key().
local function prepare(name)
    local hash = new("uintptr_t", 0)
    for c = 1, #name do
        hash = hash * 31 + byte(name, c)
    end
    local text = new("trimtab_text")
    text.length, text.text = #name, name
    texts[name], hashes[name] = text, hash
end


local function get(request, name)
    if not has_variable then
        return get_from_lua(request, name)
    end
    if not texts[name] then
        prepare(name)
    end
    local value = C.trimtab_variable(request, texts[name], hashes[name])
    if value == nil then
        return false
    end
    local word = value.word
    if band(word, NOT_FOUND) ~= 0 then
        return false
    end
    found[0], value_length = value, band(word, LENGTH_BITS)
    return true
end


-- Whether the variable has any text.
function _M.has_text(request, name)
    return get(request, name) and value_length > 0
end


-- The text of a variable, or nil.
function _M.text(request, name)
    if get(request, name) then
        return ffi_string(found[0].text, value_length)
    end
end


-- The last number in a list as "0.004, 0.001 : 0.012", or the only one.
-- Returns nil where there is no variable, and -1 where its last entry is "-".
local function last_number(request, name)
    if not get(request, name) then
        return nil
    end
    local text = found[0].text
    local number, scale, fraction = 0, 1, 1
    local digits = 0
    for at = value_length - 1, 0, -1 do
        local c = text[at]
        if c >= 48 and c <= 57 then
            number = number + (c - 48) * scale
            scale = scale * 10
            digits = digits + 1
        elseif c == 46 then
            fraction = scale
        else
            break
        end
    end
    if digits == 0 then
        return -1
    end
    return number / fraction
end

_M.last_number = last_number


-- The same of a variable that is one whole number, nil where there is none.
-- A loop would end the trace of the phase that asks; most numbers are short.
function _M.whole_number(request, name)
    if not get(request, name) then
        return nil
    end
    local text, length = found[0].text, value_length
    if length > 0 and length < 7 then
        local a, b, c, d, e, f = text[0] - 48, 0, 0, 0, 0, 0
        local number = a
        if length > 1 then
            b = text[1] - 48
            number = number * 10 + b
        end
        if length > 2 then
            c = text[2] - 48
            number = number * 10 + c
        end
        if length > 3 then
            d = text[3] - 48
            number = number * 10 + d
        end
        if length > 4 then
            e = text[4] - 48
            number = number * 10 + e
        end
        if length > 5 then
            f = text[5] - 48
            number = number * 10 + f
        end
        if min(a, b, c, d, e, f) >= 0 and max(a, b, c, d, e, f) <= 9 then
            return number
        end
    end
    return last_number(request, name)
end


return _M
