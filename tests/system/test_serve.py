"""`trimtab serve` as a process: it resumes after kill -9, stops on a signal, and stays small."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

import serving
from trimtab.cli.status import fetch, render
from trimtab.errors import TrimtabError
from trimtab.v1 import policy_pb2 as pb
from trimtab.v1 import policy_pb2_grpc

# The policy server with its learning parts; what the project promises.
MOST_RSS_BYTES = 300e6

CLASSES = ("compose", "home", "user")


@dataclass
class Server:
    """A `trimtab serve` and its two sockets."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def admin(self) -> str:
        """The admin address."""
        return f"unix:{self.directory / 'admin'}"

    @property
    def log(self) -> str:
        """What it wrote to standard error so far."""
        return (self.directory / "log").read_text()

    def ready(self) -> None:
        """Wait until it answers."""
        until = time.monotonic() + serving.TIMEOUT
        while True:
            try:
                fetch(self.admin)
            except TrimtabError:
                assert self.process.poll() is None, self.log
                assert time.monotonic() < until, self.log
                time.sleep(0.02)
            else:
                return

    @contextmanager
    def stub(self) -> Iterator[policy_pb2_grpc.PolicyServiceStub]:
        """A client."""
        with grpc.insecure_channel(f"unix:{self.directory / 'policy'}") as channel:
            yield policy_pb2_grpc.PolicyServiceStub(channel)

    def weights(self) -> pb.GetWeightsResponse:
        """The weights in force."""
        with self.stub() as stub:
            query = pb.GetWeightsRequest(instance="a")
            return stub.GetWeights(query, timeout=serving.TIMEOUT, wait_for_ready=True)

    @property
    def rss_bytes(self) -> float:
        """Its resident memory."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return 1024.0 * int(line.split()[1])
        raise AssertionError("no VmRSS")


def configure(directory: Path, peers: int = 4) -> Path:
    """A configuration with three classes on the same peers, quick to observe and decide."""
    text = [
        f'[policy]\nlisten = "unix:{directory / "policy"}"',
        f'admin_listen = "unix:{directory / "admin"}"',
        f'state_directory = "{directory / "state"}"',
        "interval_seconds = 0.1\ntime_to_live_seconds = 5",
        "[learning]\nobserve_seconds = 1\ndecision_seconds = 1\nclusters = 3",
    ]
    for name in CLASSES:
        text.append(f'[[upstream]]\nname = "{name}"\nlocation = "/{name}"')
        text += [
            f'[[upstream.peer]]\naddress = "{serving.address(n)}"\nslots = 2' for n in range(peers)
        ]
    path = directory / "trimtab.toml"
    path.write_text("\n".join(text))
    return path


@contextmanager
def serve(directory: Path) -> Iterator[Server]:
    """A running server; killed at the end if it still runs."""
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "trimtab", "serve"),
                *("--config", str(directory / "trimtab.toml")),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    server = Server(directory, process)
    try:
        server.ready()
        yield server
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A directory with a configuration, whose name is short enough for sockets."""
    configure(tmp_path)
    return tmp_path


def report(
    instance: str, number: int, *, peers: int = 4, start: int = 1, slow: float = 1.0
) -> pb.ReportStatsRequest:
    """Report `number` of a balancer with steady traffic, the first peer `slow` times slower."""
    upstreams = []
    for c, name in enumerate(CLASSES):
        stats = []
        for p in range(peers):
            done = 10 * (number + 1)
            mean = 0.01 * (c + 1) * (slow if p == 0 else 1.0)
            stats.append(
                pb.PeerStats(
                    address=serving.address(p),
                    in_flight=1,
                    requests=done,
                    responses=[0, done, 0, 0, 0],
                    in_bytes=100 * done,
                    out_bytes=1000 * done,
                    response_time_seconds=done * mean,
                    response_time_squared=done * 2 * mean**2,
                    unqueued=done,
                    unqueued_seconds=done * mean,
                    unqueued_squared=done * 2 * mean**2,
                    response_time_buckets=[done if b == 10 + c else 0 for b in range(36)],
                    in_flight_seconds=done * mean,
                )
            )
        upstreams.append(pb.UpstreamStats(upstream=name, peers=stats))
    addresses = [
        pb.AddressStats(
            address=serving.address(p),
            busy_seconds=0.05 * number,
            completions_at=[10 * number] + [0] * 31,
            seconds_at=[0.05 * number] + [0.0] * 31,
            rate=1.0,
        )
        for p in range(peers)
    ]
    return pb.ReportStatsRequest(
        instance=instance,
        start=start,
        sequence=number + 1,
        clock_seconds=0.1 * number,
        upstreams=upstreams,
        addresses=addresses,
    )


def saved(directory: Path) -> bool:
    """Whether a state after the observation is on disk."""
    try:
        state = json.loads((directory / "state" / "state.json").read_text())
    except FileNotFoundError:
        return False
    return bool(state["body"]["policy"]["clusters"])


def drive(server: Server, first: int, until) -> int:
    """Report every interval until a condition on the status holds; the number of the next one."""
    number = first
    end = time.monotonic() + serving.TIMEOUT
    with server.stub() as stub:
        while not until(fetch(server.admin)):
            assert time.monotonic() < end, server.log
            stub.ReportStats(report("nginx-1", number, slow=4.0), timeout=serving.TIMEOUT)
            number += 1
            time.sleep(0.1)
    return number


def test_kill_9_and_restart_resume_the_generation(directory: Path) -> None:
    """After kill -9 it goes on: same sockets and epoch, a later generation, what it had learned."""
    with serve(directory) as server:
        started = server.weights()
        assert started.epoch > 0
        assert started.generation >= 1
        assert [u.upstream for u in started.upstreams] == list(CLASSES)
        # Until the observation is over, the states are fitted and a decision is made and saved.
        number = drive(server, 0, lambda s: s["state"] is not None and saved(directory))
        learned = fetch(server.admin)
        before = server.weights()
        assert before.generation > started.generation
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        assert (directory / "policy").is_socket(), "kill -9 leaves the sockets behind"
    with serve(directory) as server:
        after = server.weights()
        assert after.epoch == before.epoch
        assert after.generation > before.generation
        resumed = fetch(server.admin)
        assert resumed["phase"] == "learning"
        assert len(resumed["clusters"]) == len(learned["clusters"])
        for name, upstream in learned["upstreams"].items():
            assert resumed["upstreams"][name]["deadline_seconds"] == upstream["deadline_seconds"]
        drive(server, number, lambda s: s["instances"] and s["statistics_age_seconds"] is not None)
        status = fetch(server.admin)
        assert [i["name"] for i in status["instances"]] == ["nginx-1"]
        # What people look at works on what a real server tells.
        text = render(status)
        assert f"generation {status['generation']}" in text
        assert serving.address(0) in text
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_stops_gracefully(directory: Path, number: int, code: int) -> None:
    """A signal ends the server with its status; state is saved, no socket stays."""
    with serve(directory) as server:
        before = server.weights()
        server.process.send_signal(number)
        assert server.process.wait(serving.TIMEOUT) == code
        assert server.log.splitlines()[-1].endswith("info daemon: stopped")
        assert not (directory / "policy").exists()
        assert not (directory / "admin").exists()
    with serve(directory) as server:
        after = server.weights()
        assert (after.epoch, after.generation) >= (before.epoch, before.generation)
        assert "Traceback" not in server.log


def test_port_in_use_is_one_clear_line(directory: Path) -> None:
    """A second server on the same address ends with status 1 and the key to change."""
    config = directory / "trimtab.toml"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        text = config.read_text().replace(f"unix:{directory / 'policy'}", f"127.0.0.1:{port}")
        config.write_text(text)
        ended = subprocess.run(
            [sys.executable, "-m", "trimtab", "serve", "--config", str(config)],
            capture_output=True, text=True, timeout=serving.TIMEOUT, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.splitlines()[-1].startswith(
        f"trimtab: cannot listen on listen = '127.0.0.1:{port}': Address already in use"
    )


def test_memory_stays_below_300_mb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Forty balancers with 300 pairs each, and states fitted, leave the server under 300 MB."""
    configure(tmp_path, peers=100)
    with serve(tmp_path) as server, server.stub() as stub:
        at_rest = server.rss_bytes

        def balancer(number: int) -> None:
            name = f"nginx-{number}"
            for n in range(3):
                stub.ReportStats(report(name, n, peers=100), timeout=serving.TIMEOUT)
                for _ in range(5):
                    answer = stub.GetWeights(
                        pb.GetWeightsRequest(instance=name), timeout=serving.TIMEOUT
                    )
                    assert len(answer.upstreams[2].peers) == 100

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(balancer, range(40)))
        drive(server, 0, lambda s: s["state"] is not None)
        after = server.rss_bytes
        with capsys.disabled():
            print(
                f"\n  policy server: {at_rest / 1e6:.0f} MB at rest, "
                f"{after / 1e6:.0f} MB after the load"
            )
        assert after < MOST_RSS_BYTES
        assert "failed" not in server.log, server.log


def test_server_imports_no_client_library() -> None:
    """What serves has no use for torch, requests, matplotlib or the templates."""
    code = (
        "import sys, trimtab.daemon\n"
        "print([m for m in ('torch', 'requests', 'matplotlib', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )
    assert done.stdout.strip() == "[]"
