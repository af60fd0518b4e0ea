"""Instructions in user space per request, counted by valgrind: for machines without counters.

nginx runs as one process under callgrind, which counts what it executes, as fast as it can. A
fixed number of requests goes through it, some before the count so that LuaJIT has compiled what it
will. Valgrind makes nginx twenty times slower, but its timers keep to the clock: what they take is
counted while nothing else happens, and taken off. So other work on the machine matters less than to
time; LuaJIT compiles differently each time, which is a few percent, more where requests wait.
"""

import re
import selectors
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from trimtab.actuators.nginx_process import NginxProcess
from trimtab.bench.cost import VARIANTS, backend, rendered, site_of
from trimtab.bench.stage import free_ports
from trimtab.config import split_address
from trimtab.errors import DependencyError, TrimtabError

__all__ = ["COUNTED", "REPLY_BYTES", "ROUND_SECONDS", "WARM_UP", "count", "send"]

REPLY_BYTES: Final = 4096
# LuaJIT compiles what has run some fifty times, and the ways out of that later.
WARM_UP: Final = 8000
COUNTED: Final = 4000
# About, on a quiet machine: for the bar.
ROUND_SECONDS: Final = 16.0

_CONNECTIONS: Final = 64
_IDLE_SECONDS: Final = 2.0
_START_SECONDS: Final = 60.0
# Of one answer; a busy machine in valgrind is slow.
_ANSWER_SECONDS: Final = 60.0
_REQUEST: Final = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Valgrind counts each byte of a `rep stosb` as an instruction: the C library is told to use loops.
_TUNABLES: Final = (
    "GLIBC_TUNABLES=glibc.cpu.x86_rep_stosb_threshold=1000000"
    ":glibc.cpu.x86_rep_movsb_threshold=1000000"
)


def send(address: str, requests: int) -> int:
    """Send so many requests over kept connections, the next when one is answered; count errors.

    An error is an answer other than 200. Raises TrimtabError when a connection ends or stalls.
    """
    where = split_address(address)
    read: dict[socket.socket, bytes] = {}
    sent = done = errors = 0
    with selectors.DefaultSelector() as ready:
        try:
            for _ in range(min(_CONNECTIONS, requests)):
                connection = socket.create_connection(where, timeout=_ANSWER_SECONDS)
                read[connection] = b""
                ready.register(connection, selectors.EVENT_READ)
                connection.sendall(_REQUEST)
                sent += 1
            while done < requests:
                found = ready.select(_ANSWER_SECONDS)
                if not found:
                    raise TrimtabError(f"nginx on {address} answers nothing in valgrind")
                for key, _ in found:
                    connection = key.fileobj  # type: ignore[assignment]
                    data = connection.recv(65536)
                    if not data:
                        raise TrimtabError(f"nginx on {address} closed a connection in valgrind")
                    read[connection] += data
                    if not _is_whole(read[connection]):
                        continue
                    errors += not read[connection].startswith(b"HTTP/1.1 200 ")
                    read[connection] = b""
                    done += 1
                    if sent < requests:
                        connection.sendall(_REQUEST)
                        sent += 1
        finally:
            for connection in read:
                connection.close()
    return errors


def _is_whole(data: bytes) -> bool:
    head, _, body = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    return length is not None and len(body) >= int(length[1])


def _needs() -> None:
    for program in ("valgrind", "callgrind_control"):
        if shutil.which(program) is None:
            raise DependencyError(
                f"there is no {program}: apt-get install --no-install-recommends valgrind"
            )


def _control(option: str, pid: int) -> None:
    done = subprocess.run(
        ["callgrind_control", option, str(pid)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode != 0 or "Error" in done.stdout + done.stderr:
        raise TrimtabError(f"callgrind_control failed: {(done.stdout + done.stderr).strip()[:200]}")


def _counted(directory: Path, pid: int, what: Callable[[], None]) -> tuple[int, float]:
    """Instructions that the process executes while `what` runs, and its seconds."""
    for old in directory.glob("callgrind.out.*"):
        old.unlink()
    _control("-z", pid)
    began = time.monotonic()
    what()
    seconds = time.monotonic() - began
    _control("-d", pid)
    for path in directory.glob("callgrind.out.*.*"):
        if found := re.search(r"^summary: (\d+)", path.read_text(errors="replace"), re.MULTILINE):
            return int(found[1]), seconds
    raise TrimtabError(f"callgrind wrote no count into {directory}")


def _round(directory: Path, name: str) -> float:
    """Instructions a request of one variant. Raises TrimtabError when a request fails."""
    first = free_ports(7)
    addresses = tuple(f"127.0.0.1:{first + n}" for n in range(7))
    site = site_of(directory / re.sub(r"\W+", "-", name), addresses)
    with backend(directory / "backend", addresses[:3], REPLY_BYTES):
        process: NginxProcess = rendered(site, VARIANTS[name], log=False)
        process.start(
            _START_SECONDS,
            under=(
                "env", _TUNABLES, "valgrind", "-q", "--tool=callgrind",
                "--smc-check=all-non-file",
                f"--callgrind-out-file={site.directory}/callgrind.out.%p",
            ),
            directives="daemon off; master_process off;",
        )  # fmt: skip
        errors = 0

        def load() -> None:
            nonlocal errors
            errors += send(site.listen, COUNTED)

        try:
            errors += send(site.listen, WARM_UP)
            busy, seconds = _counted(site.directory, process.pid, load)
            idle, idle_seconds = _counted(
                site.directory, process.pid, lambda: time.sleep(_IDLE_SECONDS)
            )
        finally:
            process.stop(0.0)
    if errors:
        raise TrimtabError(f"{errors} requests of {name} failed in valgrind; see {site.directory}")
    return (busy - idle / idle_seconds * seconds) / COUNTED


def count(
    directory: Path,
    *,
    rounds: int,
    found: dict[str, list[float]],
    report: Callable[[float, str, str], None],
) -> None:
    """Count every variant `rounds` times, adding to `found` (variant → instructions a request).

    Raises DependencyError when a program is missing, TrimtabError when a request fails.
    """
    _needs()
    for number in range(rounds):
        for at, name in enumerate(VARIANTS):
            done = (number * len(VARIANTS) + at) * ROUND_SECONDS
            report(done, "instructions", f"round {number + 1}, {name}")
            found.setdefault(name, []).append(_round(directory, name))
