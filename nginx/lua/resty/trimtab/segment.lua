-- A segment: a part of a request's path that LuaJIT compiles whole.
--
-- Interpreted, an access to shared memory takes fifty times as long as in
-- machine code, so all of a hook's arithmetic should be in traces. A trace
-- that begins within a function cannot follow it back into a pcall, nor into
-- a function that jit.off keeps interpreted (see rule.pick): it is given up,
-- and from there on the interpreter does the work. Where a metamethod
-- returns, though, any trace ends, and the interpreter takes over for the few
-- steps to the next segment. So
--
--     local begin = segment(function(_, upstream) … return p end)
--     local p = begin[upstream]
--
-- calls that function with one argument that is not nil, for one result.
-- A segment is a userdata, as the interpreter first looks into a table.
local getmetatable = getmetatable
local newproxy = newproxy


return function(run)
    local called = newproxy(true)
    getmetatable(called).__index = run
    return called
end
