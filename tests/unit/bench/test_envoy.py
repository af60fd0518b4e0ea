"""Envoy as a row of the benchmark: its program, its configuration, and a request through it."""

import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from trimtab.bench.balancers import envoy
from trimtab.bench.balancers.base import Site
from trimtab.bench.balancers.envoy import Envoy
from trimtab.bench.scenario import find
from trimtab.bench.stage import Stage, free_ports


def site(directory: Path, servers: tuple[str, ...]) -> Site:
    """A place to run before these servers."""
    first = free_ports(4)
    return Site(
        scenario=find("speeds"),
        servers=servers,
        listen=f"127.0.0.1:{first}",
        internal_listen=f"127.0.0.1:{first + 1}",
        policy_listen=f"127.0.0.1:{first + 2}",
        admin_listen=f"127.0.0.1:{first + 3}",
        directory=directory,
    )


def test_the_program_of_the_package_is_preferred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the script on PATH, whose child the program would be."""
    package = tmp_path / "envoy"
    (package / "_bin").mkdir(parents=True)
    (package / "__init__.py").touch()
    program = package / "_bin" / "envoy"
    program.touch(mode=0o755)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "envoy", raising=False)
    assert envoy.program() == str(program)


def test_without_a_program_the_row_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence."""
    monkeypatch.setattr(envoy, "program", lambda: None)
    assert "pip install 'trimtab[envoy]'" in Envoy(name="x", label="x").missing()


def test_the_two_rows_differ_in_whom_they_compare(tmp_path: Path) -> None:
    """Two servers at random, or all; the rest is the same."""
    where = site(tmp_path, ("127.0.0.1:1", "127.0.0.1:2"))
    two = Envoy(name="x", label="x").config(where)
    every = Envoy(name="x", label="x", full_scan=True).config(where)
    assert "N_CHOICES" in str(two)
    assert str(two).replace("N_CHOICES", "FULL_SCAN") == str(every)


@pytest.mark.skipif(bool(Envoy(name="x", label="x").missing()), reason="no envoy here")
def test_it_serves_and_is_gone_afterwards(tmp_path: Path) -> None:
    """A request reaches one of the servers; no process is left."""
    scenario = find("speeds")
    with Stage(scenario, tmp_path / "servers.log") as stage:
        where = site(tmp_path / "envoy", stage.servers)
        running = Envoy(name="x", label="x", full_scan=True).start(where)
        try:
            request = urllib.request.Request(
                f"http://{where.listen}{scenario.classes[0].path}",
                headers={"X-Trimtab-Work": "0.001"},
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                assert answer.headers["X-Trimtab-Peer"] in stage.servers
            running.check()
            assert running.cpu_seconds() > 0
        finally:
            running.stop()
    left = subprocess.run(["pgrep", "-f", str(tmp_path)], capture_output=True, check=False)
    assert left.stdout == b""
