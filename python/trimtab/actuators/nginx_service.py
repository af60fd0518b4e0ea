"""An nginx that somebody else runs: checks its configuration, reloads it, asks what it serves.

The files and their order are `stock`'s. A private nginx is `nginx_process`'s.
"""

import contextlib
import http.client
import os
import pwd
import re
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from trimtab.actuators import nginx_binary
from trimtab.actuators.nginx_checks import local
from trimtab.actuators.templates import environment
from trimtab.config import Config, split_address
from trimtab.errors import TrimtabError

__all__ = ["NginxService"]

# A check reads a few files; one that hangs (a host name that nobody resolves) must not hang us.
_COMMAND_SECONDS: Final = 30.0
_ASK_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.02
# nginx tells old workers to end 100 ms after it has started new ones; until then both answer. When
# only new answers have come for twice that time it is over.
_SETTLED_SECONDS: Final = 0.2
_TOKEN: Final = re.compile(rb"trimtab ([0-9]+-[0-9]+-[0-9a-f]{16})\n?\Z")


class NginxService:
    """The nginx of [stock].

    Args:
        config: files, commands and addresses.
        clock, sleep: monotonic seconds, and waiting for some.

    Raises DependencyError when there is no nginx program and it is needed.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._stock = config.stock
        self._installation = nginx_binary.find(config.nginx.binary)
        self._clock = clock
        self._sleep = sleep

    def _nginx(self, *arguments: str) -> list[str]:
        # nginx opens the log that it was built with first; for others than root it is an alert.
        log = ["-e", "stderr"] if self._installation.version >= (1, 19, 5) else []
        return [self._installation.path, *log, *arguments]

    def check(self) -> None:
        """`nginx -t` on the whole configuration. Raises TrimtabError with nginx's words.

        Whoever reloads for us has the rights that this needs, and we may not: then it is left to
        them, unless there is a command for it.
        """
        if self._stock.reload == "external" and not self._stock.check_command:
            return
        main = self._stock.main_file.absolute()
        command = list(self._stock.check_command) or self._nginx("-t", "-c", str(main))
        said = self._run(command)
        if said is None:
            return
        hint = ""
        if os.geteuid() != 0 and "Permission denied" in said:
            hint = (
                f"\n  {_user()} may not read all of it; let sudo check: "
                f"{self._sudoers('-t')}, and in [stock]: "
                f"check_command = {_toml(['sudo', '-n', *self._plain('-t')])}"
            )
        raise TrimtabError(f"nginx refuses {main}:\n  {said}{hint}")

    def check_alone(self, upstreams: str) -> None:
        """`nginx -t` on an upstream file by itself, before anything is changed.

        Raises TrimtabError with nginx's words.
        """
        with tempfile.TemporaryDirectory(prefix="trimtab-check-") as name:
            directory = Path(name)
            (directory / "upstreams.conf").write_text(upstreams, encoding="utf-8")
            kinds = nginx_binary.temp_paths(self._installation)
            text = environment().get_template("check.conf.j2").render(directory=name, kinds=kinds)
            (directory / "nginx.conf").write_text(text, encoding="utf-8")
            said = self._run(self._nginx("-t", "-c", str(directory / "nginx.conf")))
        if said is not None:
            shown = said.replace(f"{name}/upstreams.conf", "the new upstream file")
            raise TrimtabError(f"nginx refuses the new upstream file:\n  {shown}")

    def running(self) -> bool:
        """Whether nginx runs. Raises TrimtabError as `master` does."""
        if self._stock.reload == "signal":
            return self.master() is not None
        # Whoever may not signal it may not see it either.
        return self.served() is not None or bool(self._program()[1])

    def _program(self) -> tuple[int, str]:
        """Process and program that pid_file names; the program is "" when it does not run."""
        path = self._stock.pid_file
        try:
            pid = int(path.read_text().strip() or "0")
            return pid, Path(f"/proc/{pid}/comm").read_text().strip() if pid > 0 else ""
        except FileNotFoundError:
            return 0, ""
        except (OSError, ValueError) as error:
            raise TrimtabError(f"pid_file {path} in [stock] cannot be read: {error}") from None

    def master(self) -> int | None:
        """The pid of the running master; None when nginx does not run.

        Raises TrimtabError when pid_file cannot be read or names another program.
        """
        path = self._stock.pid_file
        pid, program = self._program()
        if not program:
            if (token := self.served()) is not None:
                raise TrimtabError(
                    f"pid_file {path} in [stock] names no running process, but an nginx serves "
                    f"generation {token}: set pid_file to its `pid`"
                )
            return None
        if "nginx" not in program and program != Path(self._installation.path).name:
            raise TrimtabError(
                f"pid_file {path} in [stock] names process {pid}, which is {program!r} and not "
                "nginx: is it a stale file?"
            )
        return pid

    def reload(self) -> None:
        """Make nginx take its configuration. Raises TrimtabError."""
        if self._stock.reload == "external":
            return
        if self._stock.reload == "command":
            said = self._run(self._stock.reload_command)
            if said is not None:
                shown = shlex.join(self._stock.reload_command)
                raise TrimtabError(f"reload_command in [stock] failed: {shown}\n  {said}")
            return
        pid = self.master()
        if pid is None:
            raise TrimtabError("nginx does not run")
        try:
            os.kill(pid, signal.SIGHUP)
        except PermissionError:
            raise TrimtabError(self._advice(pid)) from None
        except ProcessLookupError:
            raise TrimtabError(f"nginx (process {pid}) has just ended") from None

    def wait(self, token: str) -> None:
        """Until new workers serve `token`. Raises TrimtabError after `verify_seconds`."""
        give_up = self._clock() + self._stock.verify_seconds
        since: float | None = None  # when only new answers began to come
        while since is None or self._clock() - since < _SETTLED_SECONDS:
            served = self.served()
            if served == token:
                since = self._clock() if since is None else since
                self._sleep(_POLL_SECONDS)
                continue
            since = None
            if self._clock() >= give_up:
                where = self._config.nginx.internal_listen
                what = f"generation {served} there" if served else "nothing of ours there"
                raise TrimtabError(
                    f"{self._stock.verify_seconds:g} s after the reload nginx does not serve the "
                    f"new generation on {where} (internal_listen), but {what}; its error log says "
                    f"why. Is {self._stock.include_file.absolute()} included in its http block?"
                )
            self._sleep(_POLL_SECONDS)

    def served(self) -> str | None:
        """The token that workers tell now; None when nobody does."""
        host, port = split_address(local(self._config.nginx.internal_listen))
        connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=_ASK_SECONDS)
        try:
            if host.startswith("unix:"):
                connection.sock = socket.socket(socket.AF_UNIX)
                connection.sock.settimeout(_ASK_SECONDS)
                connection.sock.connect(host.removeprefix("unix:"))
            connection.request("GET", "/trimtab/generation", headers={"Host": "localhost"})
            found = _TOKEN.match(connection.getresponse().read(200))
            return found[1].decode() if found else None
        except (OSError, http.client.HTTPException):
            return None
        finally:
            with contextlib.suppress(OSError):
                connection.close()

    def _run(self, command: Sequence[str]) -> str | None:
        """Run a command; None when it succeeded, else what it said."""
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                stdin=subprocess.DEVNULL,
                timeout=_COMMAND_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return f"`{shlex.join(command)}` took over {_COMMAND_SECONDS:g} s"
        except OSError as error:
            return f"`{shlex.join(command)}` cannot be run: {error.strerror}"
        if done.returncode == 0:
            return None
        lines = (done.stderr + done.stdout).splitlines()
        said = [line for line in lines if line.strip() and "[notice]" not in line]
        return "\n  ".join(said[-12:]) or f"exit status {done.returncode}"

    def _plain(self, *arguments: str) -> list[str]:
        """An nginx command line as an administrator would type it."""
        main = str(self._stock.main_file.absolute())
        own = main == self._installation.argument("--conf-path")
        return [self._installation.path, *([] if own else ["-c", main]), *arguments]

    def _sudoers(self, *arguments: str) -> str:
        rule = f"{_user()} ALL=(root) NOPASSWD: {shlex.join(self._plain(*arguments))}"
        return f"echo {shlex.quote(rule)} | sudo tee -a /etc/sudoers.d/trimtab"

    def _advice(self, pid: int) -> str:
        """What an administrator can do about a missing right to signal."""
        command = ["sudo", "-n", *self._plain("-s", "reload")]
        return (
            f"{_user()} may not signal nginx (process {pid}). Either let sudo do it:\n"
            f"    {self._sudoers('-s', 'reload')}\n"
            f'  and in [stock]: reload = "command", reload_command = {_toml(command)}\n'
            f'  or let systemd do it, with reload = "external" in [stock] and a path unit that '
            f"reloads nginx when {self._stock.include_file.absolute()} changes: "
            "`trimtab render --unit` writes it"
        )


def _user() -> str:
    """The name of whom we run as; the number for a user that has none."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"#{os.geteuid()}"


def _toml(words: Sequence[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"
