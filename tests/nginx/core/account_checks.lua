-- Reads this request's length as account.lua does, beside variables that say
-- `shift` bytes more. Answers JSON: the length, whether a variable was asked
-- for it, and what nginx's own variable says.
local base = require("resty.core.base")
local cjson = require("cjson")
local ffi = require("ffi")
local variables = require("resty.trimtab.variables")

local pcall = pcall

local cdef = ffi.cdef
local shift = tonumber(ngx.var.arg_shift)
local asked = 0


local function whole_number(request, name)
    asked = asked + 1
    local number = variables.whole_number(request, name)
    return number and number + shift
end


-- A copy of the module of its own; its types are declared once.
ffi.cdef = function(text) pcall(cdef, text) end
package.loaded["resty.trimtab.account"] = nil
package.loaded["resty.trimtab.variables"] = {
    last_number = variables.last_number,
    whole_number = whole_number,
}
local account = require("resty.trimtab.account")
package.loaded["resty.trimtab.account"] = nil
package.loaded["resty.trimtab.variables"] = variables
ffi.cdef = cdef

local request = base.get_request()
account.open()
account.check(request)
asked = 0
local length = account.request_length(request)
ngx.print(cjson.encode({
    length = length,
    asked = asked,
    own = variables.whole_number(request, "request_length"),
}))
