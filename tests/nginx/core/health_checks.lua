-- Plays sequences on the pure part of the health of servers. Answers JSON to
-- the JSON in the request's body: a list of calls, each { name, arguments… };
-- "health" among the arguments stands for the one health that all share.
local cjson = require("cjson")
local ffi = require("ffi")
local health_of = require("resty.trimtab.health")

local huge = math.huge
local ipairs = ipairs

ngx.req.read_body()
local request = cjson.decode(ngx.req.get_body_data())
local health = {
    reason = 0, since = 0, back = 0, backoff = 0, streak = 0, asked = 0,
    pace = 0, joined = 0, ejections = 0,
}


-- skip[p] of peers 0, 1, … that are drained or not, and ejected when (0: not).
local function fill(drain, since, most)
    local count = #drain
    local server, drained = ffi.new("int[?]", count), {}
    local healths, skip = {}, {}
    for p = 0, count - 1 do
        server[p], drained[p] = p, drain[p + 1]
        healths[p] = {
            reason = since[p + 1] > 0 and 1 or 0, since = since[p + 1],
            -- The later its turn, the less the spread: no order of these.
            backoff = 60, back = since[p + 1] + 66 - 2 * p,
        }
    end
    local left = health_of.fill_skip(count, server, drained, healths, most,
                                     skip)
    local filled = { left }
    for p = 0, count - 1 do
        filled[p + 2] = skip[p]
    end
    return filled
end


-- Whether server i is silent alone, beside peers 0, 1, … that owe an answer
-- since `asked`, and are ejected or not.
local function is_alone(i, since, now, asked, reason)
    local server, drain, healths = {}, {}, {}
    for p = 0, #asked - 1 do
        server[p], drain[p] = p, 0
        healths[p] = { asked = asked[p + 1], reason = reason[p + 1] }
    end
    return health_of.is_alone(i, since, now, #asked, server, drain, healths)
end


local answers = {}
for c, call in ipairs(request) do
    local name = table.remove(call, 1)
    for a, argument in ipairs(call) do
        if argument == "health" then
            call[a] = health
        elseif argument == "huge" then
            call[a] = huge
        end
    end
    local answer
    if name == "check" then
        local run, verdict = require("resty.trimtab.checks").count(
            unpack(call))
        answer = { run, verdict == nil and 0 or verdict and 1 or -1 }
    elseif name == "fill" then
        answer = fill(unpack(call))
    elseif name == "is_alone" then
        answer = is_alone(unpack(call))
    else
        answer = health_of[name](unpack(call))
    end
    local copy = {}
    for key, value in pairs(health) do
        copy[key] = value < huge and value or -1
    end
    answers[c] = { answer == nil and cjson.null or answer, copy }
end
ngx.print(cjson.encode(answers))
