-- nginx's variables; numbers without making Lua strings.
--
-- ngx.var makes a string a read, which at five reads a request is most of
-- the garbage of the log phase. This calls the same function of the Lua
-- module (declared by resty.core.var) and parses the bytes where they lie.
require("resty.core.var")

local base = require("resty.core.base")
local ffi = require("ffi")

local C = ffi.C
local FFI_OK = base.FFI_OK
local ffi_string = ffi.string
local max = math.max
local min = math.min
local new = ffi.new
local tonumber = tonumber

local _M = {}

-- The longest name asked for, and some.
local lowercase = new("char[64]")
local value = new("char *[1]")
local value_length = new("size_t[1]")
local message = new("char *[1]")


local function get(request, name)
    return C.ngx_http_lua_ffi_var_get(request, name, #name, lowercase, 0,
                                      value, value_length, message)
           == FFI_OK
end


-- Whether the variable has any text.
function _M.has_text(request, name)
    return get(request, name) and value_length[0] > 0
end


-- The text of a variable, or nil.
function _M.text(request, name)
    if get(request, name) then
        return ffi_string(value[0], value_length[0])
    end
end


-- The last number in a list as "0.004, 0.001 : 0.012", or the only one.
-- Returns nil where there is no variable, and -1 where its last entry is "-".
local function last_number(request, name)
    if not get(request, name) then
        return nil
    end
    local text = value[0]
    local number, scale, fraction = 0, 1, 1
    local digits = 0
    for at = tonumber(value_length[0]) - 1, 0, -1 do
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
    local text, length = value[0], tonumber(value_length[0])
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
