-- The messages of proto/trimtab/v1/policy.proto, as plain tables.
--
-- encode_NAME(table) returns bytes, decode_NAME(bytes) a table; both return
-- nil and an error for what is malformed or beyond the bounds of the proto.
-- Fields have the proto's names; resty.trimtab.message says what stands for
-- what. A test compares this file with the proto.
local message = require("resty.trimtab.message")

local define = message.message

-- Bounds of the proto.
local MAX_BYTES = 8 * 1024 * 1024
local MAX_UPSTREAMS = 256
local MAX_PEERS = 4096
local MAX_PAIRS = 16384
local MAX_UNKNOWN = 16
local STATUS_CLASSES = 5
local BUCKETS = 36
local LEVELS = 32

local _M = { MAX_BYTES = MAX_BYTES, MAX_PAIRS = MAX_PAIRS }


local PEER_WEIGHT = define({
    { 1, "address", "string" },
    { 2, "weight", "double" },
    { 3, "affinity", "double" },
    { 4, "rate", "double" },
    { 5, "slots", "double" },
    { 6, "drain", "bool" },
    { 7, "sharing", "bool" },
})

local UPSTREAM_WEIGHTS = define({
    { 1, "upstream", "string" },
    { 2, "deadline", "duration" },
    { 3, "service_time", "duration" },
    { 4, "peers", PEER_WEIGHT, max = MAX_PEERS, counted = true },
})

local PEER_STATS = define({
    { 1, "address", "string" },
    { 2, "in_flight", "uint64" },
    { 3, "requests", "uint64" },
    { 4, "responses", "uint64", max = STATUS_CLASSES },
    { 5, "failures", "uint64" },
    { 6, "in_bytes", "uint64" },
    { 7, "out_bytes", "uint64" },
    { 8, "response_time_seconds", "double" },
    { 9, "response_time_squared", "double" },
    { 10, "tardiness", "double" },
    { 11, "tardy", "uint64" },
    { 12, "unqueued", "uint64" },
    { 13, "unqueued_seconds", "double" },
    { 14, "unqueued_squared", "double" },
    { 15, "response_time_buckets", "uint64", max = BUCKETS },
    { 16, "in_flight_seconds", "double" },
    { 17, "retries", "uint64" },
    { 18, "retries_refused", "uint64" },
})

local ADDRESS_LIST = define({
    { 1, "addresses", "string", max = MAX_PAIRS },
})

local PEER_COLUMNS = define({
    { 1, "addresses", ADDRESS_LIST },
    { 2, "in_flight", "uint64", max = MAX_PEERS },
    { 3, "requests", "uint64", max = MAX_PEERS },
    { 4, "responses", "uint64", max = STATUS_CLASSES * MAX_PEERS },
    { 5, "failures", "uint64", max = MAX_PEERS },
    { 6, "in_bytes", "uint64", max = MAX_PEERS },
    { 7, "out_bytes", "uint64", max = MAX_PEERS },
    { 8, "response_time_seconds", "double", max = MAX_PEERS },
    { 9, "response_time_squared", "double", max = MAX_PEERS },
    { 10, "tardiness", "double", max = MAX_PEERS },
    { 11, "tardy", "uint64", max = MAX_PEERS },
    { 12, "unqueued", "uint64", max = MAX_PEERS },
    { 13, "unqueued_seconds", "double", max = MAX_PEERS },
    { 14, "unqueued_squared", "double", max = MAX_PEERS },
    { 15, "response_time_buckets", "uint64", max = BUCKETS * MAX_PEERS },
    { 16, "in_flight_seconds", "double", max = MAX_PEERS },
    { 17, "retries", "uint64", max = MAX_PEERS },
    { 18, "retries_refused", "uint64", max = MAX_PEERS },
    { 19, "first_bucket", "uint64" },
})

local UPSTREAM_STATS = define({
    { 1, "upstream", "string" },
    { 2, "waiting", "uint64" },
    { 3, "peers", PEER_STATS, max = MAX_PEERS, counted = true },
    { 4, "peer_columns", PEER_COLUMNS },
})

local ADDRESS_STATS = define({
    { 1, "address", "string" },
    { 2, "busy_seconds", "double" },
    { 3, "completions_at", "uint64", max = LEVELS },
    { 4, "seconds_at", "double", max = LEVELS },
    { 5, "rate", "double" },
    { 6, "error_ratio", "double" },
    { 7, "down", "bool" },
    { 8, "ejections", "uint64" },
    { 9, "ejection", "string" },
    { 10, "ejection_seconds", "double" },
})

local ADDRESS_COLUMNS = define({
    { 1, "addresses", ADDRESS_LIST },
    { 2, "busy_seconds", "double", max = MAX_PAIRS },
    { 3, "completions_at", "uint64", max = LEVELS * MAX_PAIRS },
    { 4, "seconds_at", "double", max = LEVELS * MAX_PAIRS },
    { 5, "rate", "double", max = MAX_PAIRS },
    { 6, "error_ratio", "double", max = MAX_PAIRS },
    { 7, "down", "bool", max = MAX_PAIRS },
    { 8, "ejections", "uint64", max = MAX_PAIRS },
    { 9, "ejection", "string", max = MAX_PAIRS },
    { 10, "ejection_seconds", "double", max = MAX_PAIRS },
})

local CONNECTION_STATS = define({
    { 1, "active", "uint64" },
    { 2, "reading", "uint64" },
    { 3, "writing", "uint64" },
    { 4, "waiting", "uint64" },
})

local GET_WEIGHTS_REQUEST = define({
    { 1, "instance", "string" },
    { 2, "upstreams", "string", max = MAX_UPSTREAMS },
    { 3, "epoch", "uint64" },
    { 4, "generation", "uint64" },
})

local GET_WEIGHTS_RESPONSE = define({
    { 1, "epoch", "uint64" },
    { 2, "generation", "uint64" },
    { 3, "time_to_live", "duration" },
    { 4, "refresh_interval", "duration" },
    { 5, "unchanged", "bool" },
    { 6, "upstreams", UPSTREAM_WEIGHTS, max = MAX_UPSTREAMS },
    { 7, "reads_columns", "bool" },
})

local WEIGHTS_WANTED = define({
    { 1, "upstreams", "string", max = MAX_UPSTREAMS },
    { 2, "epoch", "uint64" },
    { 3, "generation", "uint64" },
})

local REPORT_STATS_REQUEST = define({
    { 1, "instance", "string" },
    { 2, "start", "uint64" },
    { 3, "sequence", "uint64" },
    { 4, "clock_seconds", "double" },
    { 5, "upstreams", UPSTREAM_STATS, max = MAX_UPSTREAMS },
    { 6, "addresses", ADDRESS_STATS, max = MAX_PAIRS },
    { 7, "generation", "uint64" },
    { 8, "connections", CONNECTION_STATS },
    { 9, "address_columns", ADDRESS_COLUMNS },
    { 10, "weights_wanted", WEIGHTS_WANTED },
})

local REPORT_STATS_RESPONSE = define({
    { 1, "accepted", "bool" },
    { 2, "unknown", "string", max = MAX_UNKNOWN },
    { 3, "weights", GET_WEIGHTS_RESPONSE },
})


local function encoder(name, fields)
    return function(t)
        local bytes, err = message.encode(fields, t)
        if not bytes then
            return nil, "failed to encode " .. name .. ": " .. err
        end
        if #bytes > MAX_BYTES then
            return nil, "failed to encode " .. name .. ": " .. #bytes
                        .. " bytes, at most " .. MAX_BYTES
        end
        return bytes
    end
end


local function decoder(name, fields)
    return function(bytes)
        if #bytes > MAX_BYTES then
            return nil, "failed to decode " .. name .. ": " .. #bytes
                        .. " bytes, at most " .. MAX_BYTES
        end
        local t, err = message.decode(fields, bytes, MAX_PAIRS)
        if not t then
            return nil, "failed to decode " .. name .. ": " .. err
        end
        return t
    end
end


-- The hook needs one direction of each; the other is for tests and tools.
_M.encode_get_weights_request = encoder("GetWeightsRequest",
                                        GET_WEIGHTS_REQUEST)
_M.decode_get_weights_request = decoder("GetWeightsRequest",
                                        GET_WEIGHTS_REQUEST)
_M.encode_get_weights_response = encoder("GetWeightsResponse",
                                         GET_WEIGHTS_RESPONSE)
_M.decode_get_weights_response = decoder("GetWeightsResponse",
                                         GET_WEIGHTS_RESPONSE)
_M.encode_report_stats_request = encoder("ReportStatsRequest",
                                         REPORT_STATS_REQUEST)
_M.decode_report_stats_request = decoder("ReportStatsRequest",
                                         REPORT_STATS_REQUEST)
_M.encode_report_stats_response = encoder("ReportStatsResponse",
                                          REPORT_STATS_RESPONSE)
_M.decode_report_stats_response = decoder("ReportStatsResponse",
                                          REPORT_STATS_RESPONSE)


return _M
