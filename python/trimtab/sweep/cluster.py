"""A sweep over the machines of a Ray cluster, or over a private Ray of this machine.

A machine of the cluster has the same trimtab as this one, and the same packages that numbers come
from; a job on another is refused before it runs. A private Ray listens on loopback alone, wants a
token that only its own processes have, reports nothing to anybody, and ends with this process.
Source: Ray's documentation, "Starting Ray", "Token authentication", "Fault tolerance: tasks".
"""

import contextlib
import functools
import hashlib
import importlib
import logging
import os
import platform
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import grpc

from trimtab import __version__
from trimtab.errors import ConfigError, DependencyError, TrimtabError
from trimtab.sweep.jobs import Heard, Job, Told, attempt, quiet, usable_cores

__all__ = ["AUTO", "LOCAL", "Cluster", "fingerprint"]

A = TypeVar("A")
R = TypeVar("R")

# A private Ray of this machine, and whichever cluster Ray finds.
LOCAL: Final = "local"
AUTO: Final = "auto"

# An address that does not answer in this time has no Ray; Ray itself would ask for minutes.
ANSWER_SECONDS: Final = 10.0

# Characters of what Ray says when it cannot connect: some errors are pages.
MOST_REASON: Final = 400

# Jobs and results are some kilobytes and go without the object store, whose least size is this.
STORE_BYTES: Final = 80 * 1024 * 1024

# A job whose process or machine is gone is done again so often: it has no effect but its result.
RETRIES: Final = 2

# Sockets of Ray have 65 bytes below its directory, of the 107 that Linux allows.
LONGEST_DIRECTORY: Final = 30

# What numbers come from.
PACKAGES: Final = ("numpy", "scipy", "scikit-learn", "numba")

# Of this process and of what it starts. Ray's own switch for loopback is meant for other systems.
_ALONE: Final = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
# A job for which memory does not suffice is tried as often as any other, not for ever.
_ALWAYS: Final = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_task_oom_retries": str(RETRIES)}
# Where a cluster speaks gRPC but cannot be joined Ray would try for minutes, deaf to Ctrl-C.
_JOINING: Final = {"RAY_NUM_REDIS_GET_RETRIES": "2", "RAY_py_gcs_connect_timeout_s": "5"}


class Cluster:
    """Does jobs on Ray; a `Sweep`.

    Args:
        address: as `ray.init` takes it (host:port, ray://host:port, "auto"), or "local".
        parallel: jobs at once; None: as many as the cluster has cores.

    Raises DependencyError without Ray, TrimtabError when it does not answer or is another version.
    """

    def __init__(self, address: str, parallel: int | None = None) -> None:
        self.parallel = parallel or 1
        self._address, self._wanted = address, parallel
        self._ray: Any = None
        self._task: Any = None
        self._directory: str | None = None
        self._environment: dict[str, str | None] = {}

    def map(
        self, function: Callable[[A, Told], R], jobs: Sequence[Job[A]], heard: Heard = quiet
    ) -> Iterator[R]:
        """See `Sweep`. Progress is that of whole jobs."""
        results: dict[int, R] = {}
        running: dict[Any, int] = {}
        begun, done = 0, 0.0
        # What runs when this is left ends by itself, or with the sweep: `ray.cancel` on a task that
        # is just ending crashes the process that calls it (Ray 2.60, task_manager.cc).
        for first in range(len(jobs)):
            while first not in results:
                while begun < len(jobs) and len(running) < self.parallel:
                    running[self._begin(function, jobs[begun])] = begun
                    begun += 1
                heard(jobs[min(running.values())].label, done, "")
                for task in self._ray.wait(list(running))[0]:
                    job = jobs[running[task]]
                    results[running[task]] = self._result(task, job)
                    del running[task]
                    done += job.seconds
            yield results.pop(first)

    def _begin(self, function: Callable[[A, Told], R], job: Job[A]) -> Any:
        try:
            return self._task.remote(fingerprint(), function, job)
        except ImportError as error:  # of the machine that serves ray://
            raise _refused(job, error) from None

    def _result(self, task: Any, job: Job[Any]) -> Any:
        errors = self._ray.exceptions
        try:
            said, value = self._ray.get(task)
        except errors.RayTaskError as error:
            # Before the job: what it raises itself is said.
            raise _refused(job, error) from None
        except errors.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise TrimtabError(f"{job.label}: lost by Ray: {reason}") from None
        if said is not None:
            raise said
        return value

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _start(self) -> None:
        self._set(_ALWAYS)
        options: dict[str, Any] = {}
        if self._address == LOCAL:
            options = self._private()
        else:
            self._set(_JOINING)
        self._ray = _imported()
        address = self._address
        if address == AUTO:
            address = os.environ.get("RAY_ADDRESS", AUTO)
        if address not in (LOCAL, AUTO):
            _ask(address)
        try:
            self._ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, **options
            )
        except Exception as error:
            reason = " ".join(str(error).split())[:MOST_REASON]
            raise TrimtabError(f"--ray {self._address}: no cluster to be had: {reason}") from None
        nodes = [n for n in self._ray.nodes() if n["Alive"]]
        if self._address == LOCAL and {n["NodeManagerAddress"] for n in nodes} != {"127.0.0.1"}:
            raise TrimtabError(
                "--ray local: this version of Ray listens beyond loopback, so it was ended; give "
                "it another version (2.60 is tested)"
            )
        cores = int(self._ray.cluster_resources().get("CPU", 0))
        self.parallel = self._wanted or max(cores, 1)
        self._task = self._ray.remote(num_cpus=1, max_retries=RETRIES)(_answer)

    def _private(self) -> dict[str, Any]:
        """Options of a Ray of this machine, in a directory that others cannot enter."""
        short = len(tempfile.gettempdir()) < LONGEST_DIRECTORY
        self._directory = tempfile.mkdtemp(prefix="trimtab-", dir=None if short else "/tmp")  # noqa: S108
        self._set({**_ALONE, "RAY_AUTH_TOKEN": secrets.token_hex(32), "TMPDIR": self._directory})
        return {
            "num_cpus": self._wanted or usable_cores(),
            "include_dashboard": False,
            "object_store_memory": STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
            # Ray lets everybody into the directory that it is given.
            "_temp_dir": str(Path(self._directory, "ray")),
        }

    def close(self) -> None:
        """End a private Ray, or leave the cluster."""
        if self._ray is not None:
            self._ray.shutdown()
            self._ray = self._task = None
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._environment = {}

    def _set(self, variables: dict[str, str]) -> None:
        for name, value in variables.items():
            self._environment[name] = os.environ.get(name)
            os.environ[name] = value


def _refused(job: Job[Any], error: Exception) -> TrimtabError:
    reason = str(error).strip().splitlines()[-1]
    return TrimtabError(
        f"{job.label}: a machine of the cluster cannot run it: {reason}; install the same trimtab "
        f"there: {fingerprint()}"
    )


def _imported() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise DependencyError("--ray needs the package ray: pip install 'trimtab[ray]'") from None


def _ask(address: str) -> None:
    """Raise TrimtabError when nothing at the address speaks gRPC, as every port of Ray does."""
    place = address.removeprefix("ray://")
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"--ray {address}: give host:port, ray://host:port, {AUTO} or {LOCAL}")
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return  # its certificates are Ray's matter
    with grpc.insecure_channel(place) as channel:
        try:
            grpc.channel_ready_future(channel).result(ANSWER_SECONDS)
        except grpc.FutureTimeoutError:
            raise TrimtabError(
                f"--ray {address}: no Ray answers there within {ANSWER_SECONDS:g} s; is its head "
                "started, and the port the right one (6379, with ray:// 10001)?"
            ) from None


@functools.cache
def fingerprint() -> str:
    """What must be the same on two machines for the same results."""
    here = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(here.rglob("*.py")):
        digest.update(path.relative_to(here).as_posix().encode() + path.read_bytes())
    packages = []
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            packages.append(f"{name} {metadata.version(name)}")
    return ", ".join(
        [
            f"trimtab {__version__} ({digest.hexdigest()[:12]})",
            f"Python {platform.python_version()}",
            *packages,
        ]
    )


def _answer(
    wanted: str, function: Callable[[A, Told], R], job: Job[A]
) -> tuple[TrimtabError | None, R | None]:
    """On a machine of the cluster: what the job raised or its result. Raises RuntimeError when it
    would be another one than on the machine that asks."""
    if fingerprint() != wanted:
        raise RuntimeError(f"{platform.node()} has {fingerprint()}")
    try:
        return None, attempt(function, job, lambda _seconds, _note: None)
    except TrimtabError as error:
        return error, None
