"""`trimtab bench scale`: what many nginx that ask and report each second cost one policy server.

`trimtab serve` runs in a process of its own, held to one processor where there are two, and the
simulated balancers (`fleet_load`) in another. From the server its processor time and memory are
read, from the balancers what their calls took. It observes all the time: fitting the states once
at the end of an observation is a cost of its own, which does not grow with the balancers.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trimtab import terminal
from trimtab.bench.fleet_load import address
from trimtab.config import MAX_PEERS, MAX_UPSTREAMS
from trimtab.errors import ConfigError, TrimtabError

__all__ = ["SIZES", "Size", "measure", "parse", "table"]

# Connections are made and the first reports of everybody taken in this time.
WARM_SECONDS: Final = 5.0

# Python's packages are read in this time even on a busy machine.
START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Size:
    """How many simulated nginx, upstreams, and peers in each of these."""

    instances: int
    upstreams: int
    peers: int

    def __str__(self) -> str:
        return f"{self.instances}x{self.upstreams}x{self.peers}"


# How cost grows with balancers up to the aim (the fourth), and from it in each direction.
SIZES: Final = tuple(
    Size(*size)
    for size in ((10, 1, 100), (100, 1, 100), (300, 1, 100), (1000, 1, 100), (1000, 1, 10),
                 (1000, 4, 25), (100, 4, 100), (100, 1, 1000))
)  # fmt: skip


def parse(text: str) -> Size:
    """A size from "INSTANCESxUPSTREAMSxPEERS". Raises ConfigError."""
    try:
        instances, upstreams, peers = map(int, text.split("x"))
    except ValueError:
        raise ConfigError(
            f"--size {text!r}: write INSTANCESxUPSTREAMSxPEERS, as 1000x1x100"
        ) from None
    if not (1 <= instances <= 4096 and 1 <= upstreams <= MAX_UPSTREAMS and 1 <= peers <= MAX_PEERS):
        raise ConfigError(
            f"--size {text!r}: at most 4096 instances, {MAX_UPSTREAMS} upstreams, {MAX_PEERS} peers"
        )
    return Size(instances, upstreams, peers)


def measure(
    sizes: Sequence[Size],
    directory: Path,
    seconds: float,
    report: Callable[[str], None],
    *,
    warm_seconds: float = WARM_SECONDS,
    separate: bool = False,
) -> list[dict[str, Any]]:
    """A result for each size: that of `fleet_load.run`, and "size", "server_cpu_ratio",
    "server_bytes" and "server_grown_bytes" over the time that counts. Raises TrimtabError."""
    found = []
    for size in sizes:
        report(str(size))
        found.append(_one(size, directory, seconds, warm_seconds, separate))
    return found


def _one(
    size: Size, directory: Path, seconds: float, warm_seconds: float, separate: bool
) -> dict[str, Any]:
    own = directory / str(size)
    own.mkdir(parents=True, exist_ok=True)
    listen, admin = (f"unix:{own / name}" for name in ("policy", "admin"))
    (own / "trimtab.toml").write_text(_configuration(size, own, listen, admin), encoding="utf-8")
    processors = sorted(os.sched_getaffinity(0))
    log = own / "policy.log"
    with log.open("wb") as file:
        server = subprocess.Popen(
            [sys.executable, "-m", "trimtab", "serve", "--config", str(own / "trimtab.toml")],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
    try:
        os.sched_setaffinity(server.pid, processors[:1])
        _wait(server, own / "admin", log)
        load = subprocess.Popen(
            [sys.executable, "-m", "trimtab.bench.fleet_load", json.dumps({
                "target": listen, "instances": size.instances, "upstreams": size.upstreams,
                "peers": size.peers, "warm_seconds": warm_seconds, "seconds": seconds,
                "separate": separate,
            })],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        )  # fmt: skip
        try:
            os.sched_setaffinity(load.pid, processors[-1:])
            # The load reads its packages and connects in the warm time; half of the rest counts.
            time.sleep(warm_seconds + 0.25 * seconds)
            before, began = _processor(server.pid), time.perf_counter()
            at_first = _resident(server.pid)
            time.sleep(0.5 * seconds)
            share = (_processor(server.pid) - before) / (time.perf_counter() - began)
            resident = _resident(server.pid)
            text, _ = load.communicate(timeout=START_SECONDS + seconds)
        finally:
            load.kill()
            load.wait()
        if load.returncode:
            raise TrimtabError(f"the load of {size} ended with {load.returncode}")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()
    return {
        "size": str(size), **json.loads(text), "server_cpu_ratio": share, "server_bytes": resident,
        "server_grown_bytes": resident - at_first,
    }  # fmt: skip


def _configuration(size: Size, directory: Path, listen: str, admin: str) -> str:
    lines = [
        "[policy]", f'listen = "{listen}"', f'admin_listen = "{admin}"',
        f'state_directory = "{directory / "state"}"', "[learning]", "observe_seconds = 86400",
    ]  # fmt: skip
    for u in range(size.upstreams):
        lines += ["[[upstream]]", f'name = "u{u}"', f'location = "/u{u}/"']
        for p in range(size.peers):
            lines += ["[[upstream.peer]]", f'address = "{address(p)}"']
    return "\n".join(lines) + "\n"


def _wait(server: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while not socket.exists():
        if server.poll() is not None or time.monotonic() > until:
            raise TrimtabError(f"the policy server did not start; {log} says why")
        time.sleep(0.05)


def _processor(pid: int) -> float:
    """Seconds of processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise TrimtabError("the policy server ended while it was measured")


def table(found: Sequence[dict[str, Any]]) -> str:
    """The results for people: a row a size."""

    def milliseconds(seconds: float | None) -> str:
        return "–" if seconds is None else f"{1000 * seconds:.1f}"

    rows = []
    for of in found:
        first = True
        for name, method in of["methods"].items():
            if not method["calls"] + method["failed"]:
                continue
            own = [
                f"{100 * of['server_cpu_ratio']:.0f}%",
                f"{of['server_bytes'] / 1e6:.0f}",
                f"{of['server_grown_bytes'] / 1e6:+.0f}",
                f"{100 * of['cpu_ratio']:.0f}%",
            ]
            rows.append(
                [
                    of["size"] if first else "",
                    name,
                    f"{method['calls'] / of['seconds']:.0f}",
                    str(method["failed"]),
                    milliseconds(method["p50_seconds"]),
                    milliseconds(method["p99_seconds"]),
                    *(own if first else [""] * len(own)),
                ]
            )
            first = False
    heads = [
        "nginx x upstreams x peers",
        "call",
        "a second",
        "failed",
        "p50 ms",
        "p99 ms",
        "core",
        "MB",
        "grown",
        "load's core",
    ]
    return terminal.table(heads, rows)
