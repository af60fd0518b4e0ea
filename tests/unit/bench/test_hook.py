"""The benchmark's row of ours: a hook that fails must not pass for a result."""

from pathlib import Path

import pytest

from bench_sites import site
from trimtab.bench.balancers.hook import Hook
from trimtab.errors import TrimtabError


@pytest.mark.skipif(bool(Hook(name="x", label="x").missing()), reason="no nginx with Lua")
def test_a_failing_hook_is_seen_in_the_log(tmp_path: Path) -> None:
    """nginx serves on without the hook, so `check` reads what it logged since the start."""
    where = site(tmp_path)
    log = tmp_path / "logs" / "error.log"
    log.parent.mkdir()
    line = "2026/01/31 12:00:00 [error] 1#1: *5 failed to run balancer_by_lua*: trimtab.lua:1: x\n"
    log.write_text(line)  # of an earlier run
    running = Hook(name="x", label="x", advised=False).start(where)
    try:
        running.check()
        with log.open("a") as file:
            file.write("2026/01/31 12:00:01 [error] 1#1: *6 connect() failed (111: refused)\n")
        running.check()
        with log.open("a") as file:
            file.write(line)
        with pytest.raises(TrimtabError, match=r"the hook failed: .*balancer_by_lua"):
            running.check()
    finally:
        running.stop()
