"""The faults: each does its harm for some seconds, undoes it, and says what it did."""

import os
import resource
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from random import Random

from .forwarder import Link
from .judge import Disturbance
from .stage import Stage

__all__ = ["FAULTS", "Fault", "Scene", "unavailable"]


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault is made: the stage, what it draws from, and seconds since the load began."""

    stage: Stage
    random: Random
    since: Callable[[], float]


# What was done, and what of it may have lost requests.
Told = tuple[str, list[Disturbance]]
Fault = Callable[[Scene], Told]

# What a service manager waits before it starts a policy server again.
RESTART_SECONDS = 1.0


def policy_killed(on: Scene) -> Told:
    """kill -9 of the policy server, sometimes for longer than the time to live."""
    away = on.random.choice((0.3, RESTART_SECONDS, 3.5))
    on.stage.kill(on.stage.policy)
    time.sleep(away)
    on.stage.start_policy()
    return f"policy server killed, started again after {away:g} s", []


def policy_stopped(on: Scene) -> Told:
    """The policy server hangs."""
    assert on.stage.policy is not None
    seconds = on.random.uniform(0.5, 4)
    os.kill(on.stage.policy.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(on.stage.policy.pid, signal.SIGCONT)
    return f"policy server hung for {seconds:.1f} s", []


def worker_killed(on: Scene) -> Told:
    """kill -9 of an nginx worker; the master starts another."""
    pid = on.random.choice(sorted(on.stage.nginx.workers()))
    at = on.since()
    os.kill(pid, signal.SIGKILL)
    return "nginx worker killed", [Disturbance("worker killed", at, at)]


def reload(on: Scene) -> Told:
    """nginx takes its configuration anew."""
    at = on.since()
    on.stage.nginx.reload()
    return "nginx reloaded", [Disturbance("reload", at, on.since())]


def server_killed(on: Scene) -> Told:
    """kill -9 of a server, which then returns empty."""
    number = on.random.randrange(len(on.stage.servers))
    at = on.since()
    on.stage.kill(on.stage.servers[number])
    time.sleep(on.random.uniform(0, 3))
    on.stage.start_server(number)
    return f"server {number} killed", [Disturbance("server killed", at, on.since())]


def server_flapping(on: Scene) -> Told:
    """A server dies and returns three times."""
    number = on.random.randrange(len(on.stage.servers))
    seen = []
    for _ in range(3):
        at = on.since()
        on.stage.kill(on.stage.servers[number])
        time.sleep(on.random.uniform(0, 0.3))
        on.stage.start_server(number)
        time.sleep(on.random.uniform(0, 0.5))
        seen.append(Disturbance("server killed", at, on.since()))
    return f"server {number} flapped three times", seen


def server_stopped(on: Scene) -> Told:
    """A server takes connections and answers nothing."""
    number = on.random.randrange(len(on.stage.servers))
    child = on.stage.servers[number]
    assert child is not None
    seconds = on.random.uniform(0.5, 5)
    at = on.since()
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(child.pid, signal.SIGCONT)
    return f"server {number} hung for {seconds:.1f} s", [
        Disturbance("server stopped", at, on.since())
    ]


def network(on: Scene) -> Told:
    """The way to the policy server refuses, is silent, slow, or changes bytes."""
    link = on.random.choice([each for each in Link if each is not Link.UP])
    seconds = on.random.uniform(1, 5)
    on.stage.forwarder.link = link
    time.sleep(seconds)
    on.stage.forwarder.link = Link.UP
    return f"network to the policy server {link.value} for {seconds:.1f} s", []


def disk_full(on: Scene) -> Told:
    """No byte can be written: logs, state, temporary files."""
    seconds = on.random.uniform(3, 8)
    if not on.stage.mounted:
        # The policy server alone: no file of its may grow.
        assert on.stage.policy is not None
        _, hard = resource.prlimit(on.stage.policy.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(on.stage.policy.pid, resource.RLIMIT_FSIZE, (0, hard))
        time.sleep(seconds)
        resource.prlimit(on.stage.policy.pid, resource.RLIMIT_FSIZE, (hard, hard))
        return f"policy server's files could not grow for {seconds:.1f} s", []
    ballast = on.stage.directory / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"\0" * 65536):
            pass
    # The last bytes too.
    with suppress(OSError), ballast.open("ab", buffering=0) as file:
        while file.write(b"\0"):
            pass
    killed = on.random.random() < 0.5
    if killed:
        on.stage.kill(on.stage.policy)
        # It cannot reserve generations, and ends with a word.
        on.stage.start_policy()
    time.sleep(seconds)
    ballast.unlink()
    assert on.stage.policy is not None
    if not on.stage.policy.running:
        time.sleep(RESTART_SECONDS)
        on.stage.start_policy()
    return f"disk full for {seconds:.1f} s" + (", policy server killed in it" if killed else ""), []


def disk_slow(on: Scene) -> Told:
    """Each fsync of the policy server takes 1.5 s longer."""
    assert on.stage.policy is not None
    inject = "inject=fsync,fdatasync:delay_enter=1500000"
    argv = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e", inject]
    with subprocess.Popen([*argv, "-p", str(on.stage.policy.pid)]) as tracer:
        time.sleep(8)
        tracer.terminate()
    return "each fsync took 1.5 s longer for 8 s", []


def state_away(on: Scene) -> Told:
    """The state directory is not there for a while."""
    state, away = on.stage.directory / "state", on.stage.directory / "away"
    seconds = on.random.uniform(3, 8)
    state.rename(away)
    time.sleep(seconds)
    if state.exists():
        shutil.rmtree(state)
    away.rename(state)
    return f"state directory away for {seconds:.1f} s", []


def state_corrupt(on: Scene) -> Told:
    """A state file is damaged while the policy server is away."""
    on.stage.kill(on.stage.policy)
    names = [
        n for n in ("state.json", "generations.json") if (on.stage.directory / "state" / n).exists()
    ]
    file = on.stage.directory / "state" / on.random.choice(names)
    data = bytearray(file.read_bytes())
    how = on.random.choice(("truncated", "changed", "emptied"))
    if how == "truncated":
        del data[len(data) // 2 :]
    elif how == "changed":
        data[len(data) // 2] ^= 0x55
    else:
        data.clear()
    file.write_bytes(data)
    time.sleep(RESTART_SECONDS)
    on.stage.start_policy()
    return f"{file.name} {how}, policy server killed", []


def clock_jump(on: Scene) -> Told:
    """The wall clock of nginx and policy server jumps, and back."""
    offset = on.random.choice((3600, -3600, 86400 * 365, -30))
    on.stage.set_clock(offset)
    time.sleep(3)
    seen = _date(on.stage) - time.time()
    on.stage.set_clock(0)
    if abs(seen - offset) > 10:
        raise RuntimeError(f"nginx's clock is off by {seen:.0f} s, not {offset}: no jump was made")
    return f"clock jumped by {offset} s for 3 s", []


def _date(stage: Stage) -> float:
    """nginx's wall clock."""
    url = f"http://{stage.config.nginx.internal_listen}/healthz"
    with urllib.request.urlopen(url, timeout=5) as answer:
        return parsedate_to_datetime(answer.headers["Date"]).timestamp()


FAULTS: dict[str, Fault] = {
    fault.__name__.replace("_", "-"): fault
    for fault in (
        policy_killed,
        policy_stopped,
        worker_killed,
        reload,
        server_killed,
        server_flapping,
        server_stopped,
        network,
        disk_full,
        disk_slow,
        state_away,
        state_corrupt,
        clock_jump,
    )
}


def unavailable(stage: Stage) -> dict[str, str]:
    """The faults that cannot be made here, and why."""
    reasons = {}
    if stage.faketime is None:
        reasons["clock-jump"] = "needs libfaketime: apt-get install faketime"
    if shutil.which("strace") is None:
        reasons["disk-slow"] = "needs strace: apt-get install strace"
    return reasons
