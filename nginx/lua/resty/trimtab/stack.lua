-- Room on the Lua stack, for the sake of machine code.
--
-- LuaJIT before July 2023 (Debian 12 has that of January; LuaJIT's issue
-- 1016) may destroy a value where a side trace needs more stack than the trace
-- that it leaves: the check whether there is as much borrows a register, and
-- where there is not, the exit finds the sum of the check in what was, say, a
-- local. With the room there before, the check never fails, and does no harm.
-- nginx's access phase is where it could: a new coroutine has 40 slots.
--
-- Interpreted, a call sees to it that its whole frame has room. So reserve()
-- is a function of a frame as large as LuaJIT has, that returns at once.
local loadstring = loadstring
local off = require("jit").off
local rep = string.rep

-- Slots: the deepest walk through the waiting room takes about 180. No
-- function may have more than 200 locals.
local SLOTS = 195

local source = "return function(is_used)\n    if is_used then\n"
               .. "        local a" .. rep(", a", SLOTS - 1)
               .. " = is_used\n        return a\n    end\nend\n"

-- Makes room for SLOTS more; to be called first in each phase.
local reserve = loadstring(source, "=trimtab_reserve")()

off(reserve)

return { SLOTS = SLOTS, reserve = reserve }
