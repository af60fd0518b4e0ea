"""The whole: nodes, nginx with the hook, policy server and load, and what must hold of them."""

import asyncio
import json
import os
import re
import signal
import socket
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from ports import free_port, free_ports
from trimtab import config
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.children import Child
from trimtab.load.processes import run_processes
from trimtab.load.result import Result
from trimtab.load.schedule import ClassLoad, build
from trimtab.load.workloads import SOCIAL, SOCIAL_SHARES
from trimtab.paths import templates_directory

TIMEOUT = 60.0
TIME_TO_LIVE = 1.0


def get(url: str) -> dict:
    """A JSON document."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def answers(url: str) -> bool:
    """Whether there is an answer."""
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def moved(directory: Path) -> str:
    """The demo's configuration, on free ports and with a short time to live."""
    text = (templates_directory() / "demo.toml").read_text()
    nodes = free_port(3)
    ports = dict(zip(("18290", "18291", "18080", "18081"), free_ports(4), strict=True))
    ports |= {f"1900{n}": nodes + n - 1 for n in (1, 2, 3)}
    for old, new in ports.items():
        text = text.replace(f":{old}", f":{new}")
    text = re.sub(r"time_to_live_seconds.*", f"time_to_live_seconds = {TIME_TO_LIVE}", text)
    text = re.sub(r"interval_seconds.*", "interval_seconds = 0.2", text, count=1)
    return text.replace('"var/trimtab"', f'"{directory}/state"')


class Stage:
    """Three nodes and an nginx; the policy server comes and goes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "trimtab.toml"
        self.file.write_text(moved(directory))
        self.config = config.load(self.file)
        self.nodes = sorted({p.address for u in self.config.upstreams for p in u.peers})
        self.nginx = NginxProcess.rendered(directory / "nginx", self.config)

    def command(self, *arguments: str) -> list[str]:
        """A trimtab command."""
        return [sys.executable, "-m", "trimtab", *arguments]

    @contextmanager
    def serving(self) -> Iterator["Stage"]:
        """The nodes and nginx run."""
        argv = self.command("demo", "--nodes", "3", "--port", self.nodes[0].rpartition(":")[2])
        argv += ["--slowness", "4,2,1", "--database", str(self.directory / "social.db")]
        with Child("nodes", argv, log=self.directory / "nodes.log") as child:
            child.wait_until(
                lambda: all(answers(f"http://{n}/healthz") for n in self.nodes), seconds=TIMEOUT
            )
            with self.nginx:
                yield self

    @contextmanager
    def policy_server(self) -> Iterator[Child]:
        """The policy server runs, and its weights are in force."""
        argv = self.command("serve", "--config", str(self.file))
        with Child("policy server", argv, log=self.directory / "policy.log") as child:
            child.wait_until(lambda: self.weights()["source"] == "learned", seconds=TIMEOUT)
            yield child

    def weights(self) -> dict:
        """What nginx says of the weights that it uses."""
        return get(f"http://{self.config.nginx.internal_listen}/trimtab/status")["weights"]

    async def load(self, rate: float, seconds: float) -> Result:
        """A seeded load of the three request types."""
        classes = [
            ClassLoad(name=kind, rate_per_second=rate * share, request=SOCIAL[kind])
            for kind, share in SOCIAL_SHARES.items()
        ]
        return await run_processes(
            build(classes, seconds=seconds, seed=7), f"http://{self.config.nginx.listen[0]}"
        )

    def slow_down(self, node: str, factor: float) -> None:
        """Change a node's slowness."""
        data = urllib.parse.urlencode({"factor": factor}).encode()
        with urllib.request.urlopen(f"http://{node}/trimtab-demo/slowness", data, timeout=10):
            pass


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    """A stage that serves."""
    with Stage(tmp_path).serving() as stage:
        yield stage


async def until(true: Callable[[], bool]) -> None:
    """Wait until it becomes true."""
    give_up = time.monotonic() + TIMEOUT
    while not await asyncio.to_thread(true):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.05)


def test_killing_the_policy_server_loses_nothing(stage: Stage) -> None:
    """After kill -9 no request fails, static weights follow, and on restart learning resumes."""

    async def scene() -> tuple[dict, dict, dict, Result]:
        load = asyncio.ensure_future(stage.load(120, 9))
        with stage.policy_server() as policy:
            await asyncio.sleep(2)
            learned = stage.weights()
            os.kill(policy.pid, signal.SIGKILL)
        killed = time.monotonic()
        await until(lambda: stage.weights()["source"] == "static")
        assert time.monotonic() - killed > TIME_TO_LIVE / 2, "before the time to live"
        static = stage.weights()
        with stage.policy_server():
            await asyncio.sleep(1)
            again = stage.weights()
            return learned, static, again, await load

    learned, static, again, result = asyncio.run(scene())

    assert result.summary().failures == {}
    assert result.summary().succeeded == len(result.schedule.times)
    assert learned["generation"] >= 1
    assert static["source"] == "static"
    assert again["epoch"] == learned["epoch"]
    assert again["generation"] >= learned["generation"]


def test_nginx_serves_without_a_policy_server(stage: Stage) -> None:
    """Where the policy server has never been up nginx starts and serves, with static weights."""
    result = asyncio.run(stage.load(100, 2))

    assert result.summary().failures == {}
    assert stage.weights()["source"] == "static"


def test_a_slowed_nodes_share_falls_and_returns(stage: Stage) -> None:
    """A node slowed four times loses most of its share within 5 s, and has it back after."""
    fastest = stage.nodes[2]
    periods = {"before": (1.0, 4.0), "slowed": (7.0, 9.0), "after": (12.0, 15.0)}

    async def scene() -> Result:
        load = asyncio.ensure_future(stage.load(200, 15))
        await asyncio.sleep(4.5)
        stage.slow_down(fastest, 4.0)
        await asyncio.sleep(4.5)
        stage.slow_down(fastest, 1.0)
        return await load

    with stage.policy_server():
        result = asyncio.run(scene())

    share = {}
    for name, (begin, end) in periods.items():
        records = result.intended_in(begin, end)
        chosen = records.peer[records.peer >= 0]
        share[name] = float(np.mean(chosen == records.peers.index(fastest)))
    assert share["slowed"] < 0.6 * share["before"], share
    assert share["after"] > 0.8 * share["before"], share
    assert result.summary().failures == {}


def processes_below(directory: Path) -> list[str]:
    """Command lines of the processes that name the directory."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in line and entry.parent.name != str(os.getpid()):
            found.append(line)
    return found


def demo_run(directory: Path, *arguments: str) -> Child:
    """A `trimtab run` of its own configuration; what it prints is in `said`."""
    file = directory / "demo.toml"
    file.write_text(moved(directory))
    argv = [sys.executable, "-m", "trimtab", "run", "--config", str(file), "--rate", "150"]
    argv += ["--directory", str(directory / "run"), *arguments]
    return Child("run", argv, log=directory / "said")


def test_the_demo_prints_its_table_and_leaves_nothing(tmp_path: Path) -> None:
    """`trimtab run FILE` compares the balancers, saves the statistics, and stops everything."""
    statistics = tmp_path / "stats.json"
    child = demo_run(tmp_path, "--seconds", "4", str(statistics))
    give_up = time.monotonic() + 3 * TIMEOUT
    while child.running:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    status = child.stop()
    said = (tmp_path / "said").read_text()

    assert status == 0, said
    for balancer in ("round robin", "least_conn", "Trimtab"):
        assert len(re.findall(rf"(?m)^.*\b{balancer}  +[\d.]+  +[\d.]+", said)) == 4, said
    assert re.search(r"ART of Trimtab: [\d.]+ per 1000", said)
    assert "Trimtab's weights at the end" in said
    assert "States: " in said
    lines = [json.loads(line) for line in statistics.read_text().splitlines()]
    counted = [sum(s["requestCounter"] for s in line["compose_backend"].values()) for line in lines]
    assert max(counted) > 0
    assert processes_below(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """A signal in mid-run ends every process; the exit status tells the signal."""
    child = demo_run(tmp_path, "--seconds", "60")
    # The calibration runs: nodes, nginx and the load generator.
    child.wait_until(lambda: len(list(tmp_path.glob("run/nginx-*/nginx.pid"))) > 0, seconds=TIMEOUT)
    assert len(processes_below(tmp_path)) > 4
    os.kill(child.pid, number)
    give_up = time.monotonic() + TIMEOUT
    while child.running:
        assert time.monotonic() < give_up
        time.sleep(0.05)

    assert child.stop() == 128 + number
    assert "stopped" in (tmp_path / "said").read_text()
    assert processes_below(tmp_path) == []


def test_a_port_in_use_is_one_clear_message(tmp_path: Path) -> None:
    """The demo refuses to start on a port in use, names it, and starts nothing."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        file = tmp_path / "taken.toml"
        file.write_text(re.sub(r"(?m)^listen = \[.*\]", f'listen = ["{address}"]', moved(tmp_path)))
        argv = [sys.executable, "-m", "trimtab", "run", "--config", str(file)]
        argv += ["--directory", str(tmp_path / "run")]
        child = Child("run", argv, log=tmp_path / "said")
        while child.running:
            time.sleep(0.05)
        status = child.stop()
    said = (tmp_path / "said").read_text()

    assert status == 1, said
    assert address in said
    assert said.startswith("trimtab: ")
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()
