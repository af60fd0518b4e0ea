-- Brings made-up service times up to date. Answers JSON to the JSON in the
-- request's body: v_j of each upstream, and their mean.
local cjson = require("cjson")
local services = require("resty.trimtab.services")

ngx.req.read_body()
local given = cjson.decode(ngx.req.get_body_data())
local registry = { upstreams = {}, map = { services = {}, head = {} } }
for j, seen in ipairs(given) do
    registry.upstreams[j] = { index = j, learned_service = seen.told }
    registry.map.services[j] = {
        count = seen.count,
        mean_seconds = seen.mean_seconds,
    }
end
services.refresh(registry)
local found = {}
for j, upstream in ipairs(registry.upstreams) do
    found[j] = upstream.service
end
ngx.say(cjson.encode({ found, registry.map.head.mean_service }))
