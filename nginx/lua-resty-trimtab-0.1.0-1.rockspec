-- The Lua library for LuaRocks: in the top directory of a checkout
--     luarocks --lua-version 5.1 make nginx/lua-resty-trimtab-0.1.0-1.rockspec
-- Trimtab's commands carry the library with them (`trimtab lua-path`); this is for
-- those who install Lua libraries by luarocks.
rockspec_format = "3.0"
package = "lua-resty-trimtab"
version = "0.1.0-1"
source = {
   -- `luarocks make` builds from the checkout and does not read it.
   url = ".",
}
description = {
   summary = "Learned, deadline-aware load balancing: the hook in nginx",
   detailed = [[
      Picks a peer per request by the least expected delay, counted over all
      upstreams and workers; pulls weights from Trimtab's policy server over
      gRPC through nginx itself, and falls back to static weights without it.
      Runs in nginx with ngx_http_lua (0.10.19 or later) and lua-resty-core.
   ]],
   license = "Apache-2.0",
   labels = { "nginx", "openresty", "load-balancing" },
}
dependencies = {
   "lua == 5.1",
   "lua-cjson >= 2.1",
}
build = {
   type = "builtin",
   modules = {
      ["resty.trimtab.account"] = "nginx/lua/resty/trimtab/account.lua",
      ["resty.trimtab.board"] = "nginx/lua/resty/trimtab/board.lua",
      ["resty.trimtab.checks"] = "nginx/lua/resty/trimtab/checks.lua",
      ["resty.trimtab.claims"] = "nginx/lua/resty/trimtab/claims.lua",
      ["resty.trimtab.counters"] = "nginx/lua/resty/trimtab/counters.lua",
      ["resty.trimtab.dispatch"] = "nginx/lua/resty/trimtab/dispatch.lua",
      ["resty.trimtab.ejection"] = "nginx/lua/resty/trimtab/ejection.lua",
      ["resty.trimtab.grpc"] = "nginx/lua/resty/trimtab/grpc.lua",
      ["resty.trimtab.health"] = "nginx/lua/resty/trimtab/health.lua",
      ["resty.trimtab.holding"] = "nginx/lua/resty/trimtab/holding.lua",
      ["resty.trimtab.json"] = "nginx/lua/resty/trimtab/json.lua",
      ["resty.trimtab.libc"] = "nginx/lua/resty/trimtab/libc.lua",
      ["resty.trimtab.limits"] = "nginx/lua/resty/trimtab/limits.lua",
      ["resty.trimtab.mapping"] = "nginx/lua/resty/trimtab/mapping.lua",
      ["resty.trimtab.message"] = "nginx/lua/resty/trimtab/message.lua",
      ["resty.trimtab.names"] = "nginx/lua/resty/trimtab/names.lua",
      ["resty.trimtab.pace"] = "nginx/lua/resty/trimtab/pace.lua",
      ["resty.trimtab.passes"] = "nginx/lua/resty/trimtab/passes.lua",
      ["resty.trimtab.picks"] = "nginx/lua/resty/trimtab/picks.lua",
      ["resty.trimtab.policy"] = "nginx/lua/resty/trimtab/policy.lua",
      ["resty.trimtab.protobuf"] = "nginx/lua/resty/trimtab/protobuf.lua",
      ["resty.trimtab.registry"] = "nginx/lua/resty/trimtab/registry.lua",
      ["resty.trimtab.report"] = "nginx/lua/resty/trimtab/report.lua",
      ["resty.trimtab.rescue"] = "nginx/lua/resty/trimtab/rescue.lua",
      ["resty.trimtab.requests"] = "nginx/lua/resty/trimtab/requests.lua",
      ["resty.trimtab.retries"] = "nginx/lua/resty/trimtab/retries.lua",
      ["resty.trimtab.room"] = "nginx/lua/resty/trimtab/room.lua",
      ["resty.trimtab.rows"] = "nginx/lua/resty/trimtab/rows.lua",
      ["resty.trimtab.rule"] = "nginx/lua/resty/trimtab/rule.lua",
      ["resty.trimtab.segment"] = "nginx/lua/resty/trimtab/segment.lua",
      ["resty.trimtab.services"] = "nginx/lua/resty/trimtab/services.lua",
      ["resty.trimtab.settings"] = "nginx/lua/resty/trimtab/settings.lua",
      ["resty.trimtab.stack"] = "nginx/lua/resty/trimtab/stack.lua",
      ["resty.trimtab.status"] = "nginx/lua/resty/trimtab/status.lua",
      ["resty.trimtab.timers"] = "nginx/lua/resty/trimtab/timers.lua",
      ["resty.trimtab.tries"] = "nginx/lua/resty/trimtab/tries.lua",
      ["resty.trimtab.variables"] = "nginx/lua/resty/trimtab/variables.lua",
      ["resty.trimtab.wake"] = "nginx/lua/resty/trimtab/wake.lua",
      ["resty.trimtab.weights"] = "nginx/lua/resty/trimtab/weights.lua",
      ["resty.trimtab"] = "nginx/lua/resty/trimtab.lua",
   },
}
