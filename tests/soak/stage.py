"""The processes of a soak: servers one process each, nginx, policy server, and what is between."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ports import free_port, free_ports
from trimtab import config
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.children import Child

from .forwarder import Forwarder, forwarding

__all__ = ["Stage", "staged"]

START_SECONDS = 60.0

# Unequal, and so that any one of them can be away at the soak's load.
SPEEDS = (2, 3, 4)
SLOTS = 2

# Mean work at speed 1; "post" is what nginx must not send twice.
CLASSES = {"read": 0.010, "report": 0.040, "post": 0.015}
SHARES = {"read": 0.6, "report": 0.25, "post": 0.15}
POSTS = "post"

# A tmpfs for all that the processes write, where we may mount: filled, it is a full disk.
DISK = "24m"

FAKETIME = ("/usr/lib/x86_64-linux-gnu/faketime", "/usr/lib/aarch64-linux-gnu/faketime")
FAKETIME_KEYS = (
    "FAKETIME_TIMESTAMP_FILE",
    "FAKETIME_CACHE_DURATION",
    "FAKETIME_DONT_FAKE_MONOTONIC",
)


def get(url: str) -> dict[str, Any]:
    """A JSON document."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)


def faketime_library() -> str | None:
    """Debian's libfaketime for processes with threads, when it is installed."""
    found = [f"{d}/libfaketimeMT.so.1" for d in FAKETIME if Path(d).is_dir()]
    return found[0] if found else None


class Stage:
    """What runs; faults act on it."""

    def __init__(self, directory: Path, *, hold: str, workers: int, mounted: bool) -> None:
        self.directory = directory
        self.mounted = mounted
        self.clock_file = directory.parent / "clock"
        self.faketime = faketime_library()
        grpc, forwarded, admin, listen, internal = free_ports(5)
        self.forwarder_ports = (forwarded, grpc)
        # Server i listens on its port + 1 (the control port of its emulator).
        self.ports = [free_port(2) for _ in SPEEDS]
        self.addresses = [f"127.0.0.1:{port + 1}" for port in self.ports]
        self.file = directory.parent / "trimtab.toml"
        self.file.write_text(self._toml(grpc, admin, listen, internal, hold, workers))
        self.config = config.load(self.file)
        # nginx reaches the policy server through the forwarder.
        policy = replace(self.config.policy, listen=f"127.0.0.1:{forwarded}")
        self.nginx = NginxProcess.rendered(directory / "nginx", replace(self.config, policy=policy))
        self.servers: list[Child | None] = [None for _ in SPEEDS]
        self.policy: Child | None = None
        self.forwarder: Forwarder
        if self.faketime:
            self.set_clock(0)
            # nginx clears its environment, and libfaketime reads it.
            file = self.nginx.directory / "nginx.conf"
            kept = "".join(f"env {key};\n" for key in FAKETIME_KEYS)
            file.write_text(kept + file.read_text())

    def _toml(
        self, grpc: int, admin: int, listen: int, internal: int, hold: str, workers: int
    ) -> str:
        text = (
            f'[policy]\nlisten = "127.0.0.1:{grpc}"\nadmin_listen = "127.0.0.1:{admin}"\n'
            f"interval_seconds = 0.2\ntime_to_live_seconds = 2\n"
            f'state_directory = "{self.directory}/state"\n'
            f'[nginx]\nlisten = ["127.0.0.1:{listen}"]\ninternal_listen = "127.0.0.1:{internal}"\n'
            f'worker_processes = {workers}\ninstance = "soak"\n'
            "[learning]\nobserve_seconds = 10\ndecision_seconds = 3\n"
        )
        for name in CLASSES:
            text += (
                f'[[upstream]]\nname = "{name}"\nlocation = "/{name}"\ntimeout_seconds = 3\n'
                f'hold = "{hold}"\n'
            )
            for address in self.addresses:
                text += f'[[upstream.peer]]\naddress = "{address}"\nslots = {SLOTS}\n'
        return text

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process read the clock through libfaketime; nothing without it."""
        if not self.faketime:
            return {}
        values = dict(zip(FAKETIME_KEYS, (str(self.clock_file), "1", "1"), strict=True))
        return {"LD_PRELOAD": self.faketime, **values}

    def set_clock(self, offset_seconds: float) -> None:
        """Move the wall clock of nginx and the policy server; at most a second later."""
        new = self.clock_file.with_suffix(".new")
        new.write_text(f"{offset_seconds:+.0f}\n")
        new.replace(self.clock_file)

    def trimtab(self, *arguments: str) -> list[str]:
        """A trimtab command."""
        return [sys.executable, "-m", "trimtab", *arguments]

    def start_server(self, number: int) -> None:
        """Start one server and wait until it answers."""
        file = self.directory.parent / f"server-{number}.toml"
        classes = "".join(
            f'[[class]]\nname = "{name}"\nshare = {SHARES[name]}\nservice_seconds = {mean}\n'
            "deadline_seconds = 0.1\n"
            for name, mean in CLASSES.items()
        )
        file.write_text(
            "duration_seconds = 86400\n[load]\nfraction = 0.5\n"
            f"[[server]]\nslots = {SLOTS}\nspeed = {SPEEDS[number]}\n{classes}"
        )
        port = self.ports[number]
        argv = self.trimtab("demo", "--scenario", str(file), "--port", str(port))
        log = self.directory.parent / f"server-{number}.log"
        child = self.servers[number] = Child(f"server {number}", argv, log=log)
        status = f"http://127.0.0.1:{port}/trimtab-emulator/status"
        child.wait_until(lambda: answers(status), seconds=START_SECONDS)

    def start_policy(self) -> None:
        """Start the policy server; not waited for."""
        argv = self.trimtab("serve", "--config", str(self.file))
        # Beside the state, so that a full disk takes its log too.
        log = self.directory / "policy.log"
        self.policy = Child("policy server", argv, log=log, environment=self.environment)

    def kill(self, child: Child | None) -> None:
        """kill -9, and reap."""
        assert child is not None
        os.kill(child.pid, signal.SIGKILL)
        while child.running:
            time.sleep(0.01)

    def weights(self) -> tuple[int, int] | None:
        """Epoch and generation that nginx uses; None without learned ones, or without an answer."""
        status = self.status()
        if status is None or status["weights"]["source"] != "learned":
            return None
        return int(status["weights"]["epoch"]), int(status["weights"]["generation"])

    def status(self) -> dict[str, Any] | None:
        """What nginx says; None when it does not."""
        try:
            return get(f"http://{self.config.nginx.internal_listen}/trimtab/status")
        except OSError:
            return None

    def phase(self) -> str:
        """What the policy server is at; empty when it does not say."""
        try:
            return str(get(f"http://{self.config.policy.admin_listen}/status.json")["phase"])
        except OSError:
            return ""

    def memory(self) -> list[tuple[str, int, int]]:
        """Role, pid and resident bytes of the policy server and of each nginx worker."""
        pids = [("nginx worker", pid) for pid in self.nginx.workers()] if self.nginx.running else []
        if self.policy is not None and self.policy.running:
            pids.append(("policy server", self.policy.pid))
        sizes = [(role, pid, resident(pid)) for role, pid in pids]
        return [each for each in sizes if each[2]]

    @contextmanager
    def serving(self) -> Iterator["Stage"]:
        """All run; ended at the end."""
        before = dict(os.environ)
        try:
            for number in range(len(self.servers)):
                self.start_server(number)
            with forwarding(*self.forwarder_ports) as self.forwarder:
                os.environ.update(self.environment)
                try:
                    self.nginx.start()
                finally:
                    os.environ.clear()
                    os.environ.update(before)
                self.start_policy()
                give_up = time.monotonic() + START_SECONDS
                while self.weights() is None:
                    if time.monotonic() > give_up:
                        raise TimeoutError("no weights of the policy server are in force")
                    time.sleep(0.1)
                yield self
        finally:
            self.nginx.stop()
            for child in (self.policy, *self.servers):
                if child is not None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGCONT)
                    child.stop()


def answers(url: str) -> bool:
    """Whether there is an answer."""
    try:
        get(url)
    except OSError:
        return False
    return True


def resident(pid: int) -> int:
    """Bytes of memory that a process has; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


@contextmanager
def staged(directory: Path, *, hold: str, workers: int) -> Iterator[Stage]:
    """A stage that serves, with a disk of its own where we may mount one."""
    disk = directory / "disk"
    shutil.rmtree(directory, ignore_errors=True)
    disk.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=755", "tmpfs", str(disk)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        with Stage(disk, hold=hold, workers=workers, mounted=mounted).serving() as stage:
            yield stage
    finally:
        if mounted:
            for name in ("policy.log", "nginx/logs/error.log"):
                if (disk / name).exists():
                    shutil.copy(disk / name, directory / Path(name).name)
            subprocess.run(["umount", str(disk)], check=True)
