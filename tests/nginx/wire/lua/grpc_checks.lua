-- What test_grpc.py has nginx do with resty.trimtab.grpc.
local grpc = require("resty.trimtab.grpc")
local libc = require("resty.trimtab.libc")
local policy = require("resty.trimtab.policy")

local _M = {}


local function now_ms()
    return libc.monotonic() * 1000
end


-- One call; the bytes in base64.
function _M.call(request)
    local start = now_ms()
    local body, err, status = grpc.call(
        request.host, request.port, request.method or "GetWeights",
        ngx.decode_base64(request.body or ""), request.timeout_ms or 2000)
    return {
        body = body and ngx.encode_base64(body),
        err = err,
        status = status,
        milliseconds = now_ms() - start,
    }
end


-- GetWeights, decoded, `count` times: the last answer and all the times.
function _M.weights(request)
    local times, response = {}, nil
    for i = 1, request.count do
        local start = now_ms()
        local bytes = assert(policy.encode_get_weights_request({
            instance = "test",
        }))
        local body, err = grpc.call(request.host, request.port, "GetWeights",
                                    bytes, 2000)
        if not body then
            return { err = err }
        end
        response = assert(policy.decode_get_weights_response(body))
        times[i] = now_ms() - start
    end
    return { response = response, milliseconds = times }
end


-- What comes of calls that no program should make.
function _M.misuse()
    local out = {}
    for name, arguments in pairs({
        nothing = {},
        method = { "127.0.0.1", 1, nil, "", 100 },
        message = { "127.0.0.1", 1, "GetWeights", nil, 100 },
        timeout = { "127.0.0.1", 1, "GetWeights", "", "soon" },
    }) do
        local ok, body, err = pcall(grpc.call, unpack(arguments, 1, 5))
        out[name] = { ok = ok, has_body = body ~= nil, err = err }
    end
    return out
end


return _M
