"""Where and with what a benchmark ran: what a reader needs to judge or repeat its figures."""

import os
import platform
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from trimtab import __version__
from trimtab.actuators.nginx_binary import find
from trimtab.bench.balancers.envoy import program
from trimtab.errors import DependencyError

__all__ = ["commit", "machine"]


def _said(*command: str) -> str:
    """The first line that a program prints; empty when it cannot be run."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=False,
            cwd=Path(__file__).parent,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip().partition("\n")[0].strip() if done.returncode == 0 else ""


@cache
def commit() -> str:
    """The commit of the checkout that runs, "-dirty" when files differ; empty for a package."""
    return _said("git", "describe", "--always", "--dirty", "--exclude=*")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((x.partition(":")[2].strip() for x in lines if x.startswith("model name")), "")


def _envoy() -> str:
    path = program()
    found = re.search(r"/(\d+\.\d+\.\d+)/", _said(path, "--version")) if path else None
    return f"Envoy {found[1]}" if found else ""


def machine() -> dict[str, Any]:
    """System, processor, versions, commit and command."""
    try:
        nginx = find("nginx").name
    except DependencyError:
        nginx = ""
    return {
        "trimtab": __version__,
        "commit": commit(),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["trimtab", *sys.argv[1:]],
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "nginx": nginx,
        "haproxy": " ".join(_said("haproxy", "-v").split()[:3]),
        "envoy": _envoy(),
    }
