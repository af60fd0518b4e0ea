-- Brings made-up service times up to date. Answers JSON to the JSON in the
-- request's body: v_j of each upstream, their mean, and D and the rate of each
-- server.
local cjson = require("cjson")
local counters = require("resty.trimtab.counters")
local ffi = require("ffi")
local services = require("resty.trimtab.services")

local function doubles(values)
    return ffi.new("double[?]", #values, values)
end

ngx.req.read_body()
local given = cjson.decode(ngx.req.get_body_data())
local count = #given.done
local registry = {
    upstreams = {},
    servers = {},
    slots = ffi.new("double[?]", count),
    prior = doubles(given.prior),
    map = {
        services = {},
        head = { address_capacity = count },
        done = doubles(given.done),
        busy = doubles(given.busy),
        last = ffi.new("double[?]", count),
        rate = ffi.new("double[?]", count),
        error = ffi.new("double[?]", count),
    },
}
for s = 1, count do
    registry.servers[s] = s - 1
end
for j, seen in ipairs(given.classes) do
    registry.upstreams[j] = { index = j, learned_service = seen.told }
    registry.map.services[j] = {
        count = seen.count,
        mean_seconds = seen.mean_seconds,
        in_use = seen.in_use,
    }
end
counters.open(registry.map, registry, {})
services.refresh(registry)
local found, in_use, done, rate = {}, {}, {}, {}
for j, upstream in ipairs(registry.upstreams) do
    found[j] = upstream.service
    in_use[j] = registry.map.services[j].in_use
end
for s = 1, count do
    done[s], rate[s] = registry.map.done[s - 1], registry.map.rate[s - 1]
end
ngx.say(cjson.encode({
    service = found,
    in_use = in_use,
    mean = registry.map.head.mean_service,
    done = done,
    rate = rate,
}))
