"""What a request leaves for Lua's garbage collector."""

import http.client
from pathlib import Path

import pytest

from hooked import hooked, until
from peers import Peer, peers

# Compiled after some hundreds; with the collector stopped, all that is allocated stays.
WARM_UP = 1500
REQUESTS = 2000

# Timers (the maintenance) allocate beside, and of the picks some are kept. A boxed pointer or
# number is 16 bytes or more.
BYTES = 12

_SERVER = """
        location = /memory { content_by_lua_block {
            if ngx.var.arg_stop then
                collectgarbage() collectgarbage("stop")
            end
            ngx.print(string.format("%d", collectgarbage("count") * 1024))
        } }
        location = /empty {
            access_by_lua_block { local _ = 1 }
            proxy_pass http://empty;
            log_by_lua_block { local _ = 1 }
        }
"""

_UPSTREAM = """
    upstream empty {{
        server {address};
        balancer_by_lua_block {{ local _ = 1 }}
        keepalive 4;
    }}
"""


@pytest.mark.parametrize("hold", ["off", "auto"])
def test_a_request_allocates_nothing_in_lua(tmp_path: Path, hold: str) -> None:
    """Over two thousand requests Lua's memory grows by less than one object each beyond what
    nginx's Lua module takes for hooks that do nothing; picked at once, or after a look into the
    waiting room."""
    with (
        peers(Peer(), Peer()) as group,
        hooked(
            tmp_path,
            {"a": [{"address": a, "slots": 4} for a in group.addresses]},
            interval=60,
            http=_UPSTREAM.format(address=group[0].address),
            server=_SERVER,
            hold={"hold": hold},
        ) as nginx,
    ):
        connection = http.client.HTTPConnection("127.0.0.1", nginx.port, timeout=5)

        def get(path: str) -> bytes:
            connection.request("GET", path)
            response = connection.getresponse()
            assert response.status == 200
            return response.read()

        def grown(path: str) -> int:
            for _ in range(WARM_UP):
                get(path)
            windows = []
            for _ in range(5):
                before = int(get("/memory?stop=1"))
                for _ in range(REQUESTS):
                    get(path)
                windows.append(int(get("/memory")) - before)
            # What a request takes shows in each; a late trace or a slow machine's timers do not.
            return min(windows)

        empty, own = grown("/empty"), grown("/a")
        connection.close()
        until(nginx.is_at_rest)
        print(f"bytes a request: {empty / REQUESTS:.1f} empty, {own / REQUESTS:.1f} with us")
        assert own - empty < BYTES * REQUESTS
