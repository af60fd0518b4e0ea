-- A content handler: POST /MODULE/FUNCTION with JSON, JSON back.
local cjson = require("cjson.safe")

ngx.req.read_body()
local module, name = ngx.var.uri:match("^/(%w+)/([%w_]+)$")
local body = ngx.req.get_body_data()
local run = require(module .. "_checks")[name]
local result, err = cjson.encode(run(assert(cjson.decode(body))))
if not result then
    ngx.status = 500
    result = err
end
ngx.print(result)
