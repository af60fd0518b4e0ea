"""A private nginx: started in a directory of its own, watched, reloaded and stopped.

The system's nginx service is never touched. Which nginx there is and what it can do is found by
`nginx_binary`, the configuration comes from `nginx_conf`.
"""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from trimtab.actuators import nginx_checks, nginx_conf
from trimtab.actuators.nginx_binary import Installation, find, machine
from trimtab.children import Child
from trimtab.config import Config, split_address
from trimtab.errors import DependencyError, TrimtabError
from trimtab.listen import claim

__all__ = ["STOP_SECONDS", "NginxProcess", "check"]

# SIGQUIT lets requests end, SIGTERM cuts them: most take well under ten seconds, and whoever
# pressed Ctrl-C does not wait longer.
STOP_SECONDS: Final = 10.0
_CUT_SECONDS: Final = 2.0

# A check reads a few files; one that hangs (a host name that nobody resolves) must not hang us.
_CHECK_SECONDS: Final = 30.0

_POLL_SECONDS: Final = 0.01

# What nginx says when a part is missing, and what mends it.
_MISSING: Final = {
    "module 'cjson": "apt-get install --no-install-recommends lua-cjson",
    "module 'resty.core": "apt-get install --no-install-recommends lua-resty-core",
    'unknown directive "vhost_traffic_status': "give the path of "
    "ngx_http_vhost_traffic_status_module.so to `trimtab render --vts-module`",
}


def _failed(text: str, directory: Path) -> TrimtabError:
    """nginx's own words as an error of ours."""
    said = [line for line in text.splitlines() if line and "[notice]" not in line]
    told = "\n  ".join(said[-12:]) or "it said nothing"
    for sign, remedy in _MISSING.items():
        if sign in text:
            return DependencyError(f"nginx lacks a part: {remedy}\n  {told}")
    return TrimtabError(f"nginx refuses {directory}/nginx.conf:\n  {told}")


def _command(installation: Installation, directory: Path) -> list[str]:
    # nginx opens the log that it was built with before it reads the configuration; for a user who
    # may not write there that is an alert. Since 1.19.5 it can be told otherwise.
    log = ["-e", "stderr"] if installation.version >= (1, 19, 5) else []
    return [installation.path, *log, "-p", f"{directory}/", "-c", f"{directory}/nginx.conf"]


def check(installation: Installation, directory: Path) -> None:
    """Run `nginx -t` on directory/nginx.conf.

    Raises TrimtabError with nginx's message, DependencyError when a part of nginx is missing.
    """
    try:
        done = subprocess.run(
            [*_command(installation, directory), "-t"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_CHECK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TrimtabError(
            f"`nginx -t` on {directory}/nginx.conf took over {_CHECK_SECONDS:g} s; "
            "does it have a host name that nobody resolves?"
        ) from None
    if done.returncode != 0:
        raise _failed(done.stderr, directory)


class NginxProcess:
    """One nginx in `directory`, where `nginx_conf.write` has put its configuration.

    As a context manager it is started at the start and gone at the end. Start it from the main
    thread: the kernel tells it to stop when the thread that started it ends.

    Args:
        directory: absolute; nginx's prefix.
        config: where it listens.
        installation: the nginx to run; found from the configuration when None.
    """

    def __init__(
        self, directory: Path, config: Config, *, installation: Installation | None = None
    ) -> None:
        self.directory = directory
        self.installation = installation or find(config.nginx.binary)
        self._config = config
        self._master: Child | None = None

    @classmethod
    def rendered(cls, directory: Path, config: Config, **options: Any) -> Self:
        """Render into `directory`, with the `options` of `nginx_conf.render`; not yet started.

        Raises ConfigError, DependencyError.
        """
        directory = directory.absolute()
        installation = find(config.nginx.binary)
        mode = options.get("mode") or config.nginx.mode
        if not options.get("observe", True):
            mode = "plain"
        if "machine" not in options:
            # The directory comes first: with a strict umask only some users can go into it.
            nginx_conf.write({}, directory)
            options["machine"] = machine(installation, directory, mode)
        nginx_conf.write(nginx_conf.render(config, directory, **options), directory)
        return cls(directory, config, installation=installation)

    @property
    def error_log(self) -> Path:
        """What nginx has to say."""
        return self.directory / "logs" / "error.log"

    @property
    def running(self) -> bool:
        """Whether the master runs."""
        return self._master is not None and self._master.running

    @property
    def pid(self) -> int:
        """Process id of the master. Raises TrimtabError when it is not running."""
        if self._master is None or not self._master.running:
            raise TrimtabError(f"the nginx in {self.directory} is not running")
        return self._master.pid

    def workers(self) -> set[int]:
        """Process ids of the workers now, old ones that still serve included."""
        pid = self.pid
        try:
            return {int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
        except OSError:
            return set()

    def claim(self) -> None:
        """Raise TrimtabError, which names the key, when an address to listen on is taken."""
        for address in self._config.nginx.listen:
            claim(address, "listen", section="[nginx]")
        claim(self._config.nginx.internal_listen, "internal_listen", section="[nginx]")

    def start(
        self,
        timeout_seconds: float = 15.0,
        *,
        under: Sequence[str] = (),
        directives: str = "daemon off;",
    ) -> None:
        """Check addresses and configuration, start, and wait until it answers.

        A program that starts others, as valgrind, may be put before it (`under`), and other
        directives on its command line.
        Raises TrimtabError with what nginx said; nothing runs then.
        """
        if self.running:
            raise TrimtabError(f"the nginx in {self.directory} is running already")
        self.stop()
        self.claim()
        check(self.installation, self.directory)
        said = self.directory / "logs" / "start.log"
        said.unlink(missing_ok=True)
        command = [*under, *_command(self.installation, self.directory), "-g", directives]
        self._master = master = Child("nginx", command, log=said)
        give_up = time.monotonic() + timeout_seconds
        try:
            while not self.answers():
                if not master.running:
                    raise _failed(said.read_text(errors="replace"), self.directory)
                if time.monotonic() > give_up:
                    raise TrimtabError(
                        f"nginx does not answer on {self._config.nginx.internal_listen} after "
                        f"{timeout_seconds:g} s; see {self.error_log}"
                    )
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.stop(0.0)
            raise

    def answers(self) -> bool:
        """Whether a worker answers on the internal address, within a second."""
        host, port = split_address(nginx_checks.local(self._config.nginx.internal_listen))
        connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=1.0)
        try:
            if host.startswith("unix:"):
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(1.0)
                connection.sock.connect(host.removeprefix("unix:"))
            connection.request("GET", "/healthz", headers={"Host": "localhost"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def reload(self, timeout_seconds: float = 15.0) -> None:
        """Check the configuration and take it; returns when a new worker has been started.

        Raises TrimtabError: nginx goes on with the old configuration.
        """
        before = self.workers()
        check(self.installation, self.directory)
        os.kill(self.pid, signal.SIGHUP)
        give_up = time.monotonic() + timeout_seconds
        while not self.workers() - before:
            if time.monotonic() > give_up:
                raise TrimtabError(
                    f"nginx did not take the new configuration in {timeout_seconds:g} s and goes "
                    f"on with the old one; see {self.error_log}"
                )
            time.sleep(_POLL_SECONDS)

    def stop(self, grace_seconds: float = STOP_SECONDS) -> None:
        """Let requests end for `grace_seconds`, then cut them; nothing is left. Idempotent."""
        master = self._master
        if master is None:
            return
        if grace_seconds > 0 and master.running:
            os.kill(master.pid, signal.SIGQUIT)
            give_up = time.monotonic() + grace_seconds
            while master.running and time.monotonic() < give_up:
                time.sleep(_POLL_SECONDS)
        if master.stop(grace_seconds=_CUT_SECONDS) < 0:
            # A master that was killed leaves its workers, which are of its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(master.pid, signal.SIGKILL)
        self._master = None

    def cut(self) -> None:
        """Cut what a `stop` under way still waits for; for signal handlers."""
        if self.running:
            os.kill(self.pid, signal.SIGTERM)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Whoever was interrupted does not wait for requests to end.
        self.stop(0.0 if kind is not None else STOP_SECONDS)
