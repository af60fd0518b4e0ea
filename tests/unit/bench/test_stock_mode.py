"""The benchmark's row of stock mode: nginx's own balancer, our page, and the policy server."""

import json
import urllib.request
from pathlib import Path

import pytest

from trimtab.bench.balancers.base import Site
from trimtab.bench.balancers.stock import MODULE_VARIABLE, StockMode
from trimtab.bench.scenario import find
from trimtab.bench.stage import free_ports


@pytest.mark.skipif(bool(StockMode(name="x", label="x").missing()), reason="no nginx with Lua")
def test_stock_mode_runs_and_tells_its_reloads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nginx serves the upstream file under least_conn without a Lua balancer, the page has the
    class's group, and the status of the policy server is kept beside."""
    monkeypatch.delenv(MODULE_VARIABLE, raising=False)
    tmp_path.chmod(0o755)
    first = free_ports(7)
    addresses = [f"127.0.0.1:{first + n}" for n in range(7)]
    site = Site(
        scenario=find("speeds"),
        servers=tuple(addresses[:3]),
        listen=addresses[3],
        internal_listen=addresses[4],
        policy_listen=addresses[5],
        admin_listen=addresses[6],
        directory=tmp_path,
    )
    running = StockMode(name="x", label="x").start(site)
    try:
        with urllib.request.urlopen(f"http://{addresses[4]}/status/format/json") as answer:
            page = json.load(answer)
        running.check()
    finally:
        running.stop()
    assert {row["server"] for row in page["upstreamZones"]["request"]} == set(addresses[:3])
    upstreams = (tmp_path / "upstreams.conf").read_text()
    assert upstreams.count("least_conn;") == 1
    assert "balancer_by_lua" not in upstreams
    told = json.loads((tmp_path / "stock.json").read_text())
    assert told["file"] == str(tmp_path / "upstreams.conf")


def test_a_module_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """TRIMTAB_VTS_MODULE with a wrong path: the row is missing, and says why."""
    monkeypatch.setenv(MODULE_VARIABLE, "/nowhere/vts.so")
    assert "/nowhere/vts.so, which is no file" in StockMode(name="x", label="x").missing()
