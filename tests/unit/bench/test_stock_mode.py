"""The benchmark's row of stock mode: nginx's own balancer, our page, and the policy server."""

import json
import urllib.request
from pathlib import Path

import pytest

from bench_sites import site
from trimtab.bench.balancers.stock import MODULE_VARIABLE, StockMode


@pytest.mark.skipif(bool(StockMode(name="x", label="x").missing()), reason="no nginx with Lua")
def test_stock_mode_runs_and_tells_its_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx serves the upstream file under least_conn without a Lua balancer, the page has the
    class's group, and the status of the policy server is kept beside."""
    monkeypatch.delenv(MODULE_VARIABLE, raising=False)
    tmp_path.chmod(0o755)
    where = site(tmp_path)
    running = StockMode(name="x", label="x").start(where)
    try:
        with urllib.request.urlopen(f"http://{where.internal_listen}/status/format/json") as answer:
            page = json.load(answer)
        running.check()
    finally:
        running.stop()
    assert {row["server"] for row in page["upstreamZones"]["request"]} == set(where.servers)
    upstreams = (tmp_path / "upstreams.conf").read_text()
    assert upstreams.count("least_conn;") == 1
    assert "balancer_by_lua" not in upstreams
    told = json.loads((tmp_path / "stock.json").read_text())
    assert told["file"] == str(tmp_path / "upstreams.conf")


def test_a_module_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRIMTAB_VTS_MODULE with a wrong path: the row is missing, and says why."""
    monkeypatch.setenv(MODULE_VARIABLE, "/nowhere/vts.so")
    assert "/nowhere/vts.so, which is no file" in StockMode(name="x", label="x").missing()
