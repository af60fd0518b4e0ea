-- Writes JSON: what the status pages need and Debian's lua-cjson lacks.
--
-- lua-cjson 2.1.0 writes every empty table as an object, and numbers of more
-- than 14 digits rounded, with an exponent. Here a table is an array when it
-- has a first entry or was marked by array(); keys are sorted, whole numbers
-- whole, and a number that JSON cannot hold (NaN, infinity) is null.
local byte = string.byte
local concat = table.concat
local floor = math.floor
local format = string.format
local getmetatable = getmetatable
local gsub = string.gsub
local huge = math.huge
local pairs = pairs
local setmetatable = setmetatable
local sort = table.sort
local tonumber = tonumber
local tostring = tostring
local type = type

-- Beyond it not every whole number is a double.
local MAX_INTEGER = 2 ^ 53

local ARRAY = {}

local _M = {}


-- Marks a table as an array, which matters when it is empty.
function _M.array(t)
    return setmetatable(t, ARRAY)
end


local function escape(character)
    return format("\\u%04x", byte(character))
end


local function quoted(s)
    return '"' .. gsub(s, '[%c"\\\127-\255]', escape) .. '"'
end


local function number(value)
    if value ~= value or value == huge or value == -huge then
        return "null"
    end
    if value == floor(value) and value > -MAX_INTEGER
       and value < MAX_INTEGER
    then
        return format("%d", value)
    end
    local short = format("%.15g", value)
    return tonumber(short) == value and short or format("%.17g", value)
end


local write


local function write_array(out, t)
    out[#out + 1] = "["
    for i = 1, #t do
        if i > 1 then
            out[#out + 1] = ","
        end
        write(out, t[i])
    end
    out[#out + 1] = "]"
end


local function write_object(out, t)
    local keys = {}
    for key in pairs(t) do
        keys[#keys + 1] = key
    end
    sort(keys)
    out[#out + 1] = "{"
    for i = 1, #keys do
        if i > 1 then
            out[#out + 1] = ","
        end
        out[#out + 1] = quoted(keys[i])
        out[#out + 1] = ":"
        write(out, t[keys[i]])
    end
    out[#out + 1] = "}"
end


function write(out, value)
    local kind = type(value)
    if kind == "number" then
        out[#out + 1] = number(value)
    elseif kind == "string" then
        out[#out + 1] = quoted(value)
    elseif kind ~= "table" then
        out[#out + 1] = kind == "boolean" and tostring(value) or "null"
    elseif value[1] ~= nil or getmetatable(value) == ARRAY then
        write_array(out, value)
    else
        write_object(out, value)
    end
end


-- The JSON text of a value made of tables, strings, numbers and booleans.
-- Bytes beyond ASCII are written as if they were Latin-1.
function _M.encode(value)
    local out = {}
    write(out, value)
    return concat(out)
end


return _M
