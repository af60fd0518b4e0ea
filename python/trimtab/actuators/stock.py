"""Puts weights in force in an nginx without the hook: its upstream file, safely, and a reload.

The file is ours alone. A change goes

    write beside, sync → check it by itself → keep the old one beside → swap → `nginx -t` → reload
    → see that new workers serve the new generation → forget the old one

and whenever a step fails the old file comes back, with a reload if there had been one. A crash
leaves at any point a file that nginx accepts: before the swap the old one, after it one that has
been checked; the next writer finishes or undoes what was begun. One writer at a time.

Nothing is reloaded without a material change, nor more often than the governor allows: then the
weights wait, and `tick` applies the latest of them.
"""

import contextlib
import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from trimtab.actuators.governor import Governor
from trimtab.actuators.nginx_conf import render_upstreams
from trimtab.actuators.nginx_service import NginxService
from trimtab.config import Config
from trimtab.errors import TrimtabError
from trimtab.model import Weights

__all__ = ["STEPS", "Stock"]

_log: Final = logging.getLogger(__name__)

# Where a change can be interrupted, in order.
STEPS: Final = (
    "written", "checked", "kept", "swapped", "tested", "reloaded", "verified", "done",
)  # fmt: skip

_TOKEN: Final = re.compile(r'return 200 "trimtab (([0-9]+)-([0-9]+)-([0-9a-f]{16}))\\n";')
_UPSTREAM: Final = re.compile(r"^upstream (\S+) \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
_SERVER: Final = re.compile(r"^ +server (\S+) weight=([0-9]+)[^;]*?( down)?;$", re.MULTILINE)

# How often to look whether another writer is done; a change takes half a second or more.
_LOCK_SECONDS: Final = 0.02

# Since a file's age is not known better than this after a restart.
_HOUR_SECONDS: Final = 3600.0


class Stock:
    """The actuator of stock mode. Safe to use from any thread.

    Args:
        config: what to render, and where.
        service: the nginx; made from the configuration when None.
        clock: monotonic seconds; wall: seconds since 1970, for the age of the file.
        step: called with the name of each step that has been done, see STEPS.

    Raises DependencyError when there is no nginx program.
    """

    def __init__(
        self,
        config: Config,
        service: NginxService | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._config = config
        self._file = config.stock.include_file.absolute()
        self._service = service or NginxService(config)
        self._step = step
        self._lock = threading.Lock()
        self._pending: Weights | None = None
        self._governor = Governor(
            config.stock.reload_min_seconds, config.stock.reloads_per_hour, clock
        )
        self._generation = 0
        with contextlib.suppress(TrimtabError):
            if found := _TOKEN.search(self._file_text() or ""):
                self._generation = int(found[3])
        with contextlib.suppress(OSError):
            # A restart of ours is no reason for a reload more.
            age = wall() - self._file.stat().st_mtime
            if 0 <= age < _HOUR_SECONDS:
                self._governor.spend(age)

    def apply(self, weights: Weights) -> None:
        """Put `weights` in force, now or as soon as a reload is allowed.

        Raises TrimtabError, which says what is in force instead.
        """
        with self._lock:
            self._pending = weights
            try:
                self._go_on()
            except TrimtabError:
                self._pending = None
                raise

    def tick(self) -> None:
        """Apply what waits, if a reload is allowed by now. Raises TrimtabError; it waits on."""
        with self._lock:
            self._go_on()

    def apply_now(self, weights: Weights | None) -> str:
        """Put weights (None: the static ones) in force whatever the governor says.

        Gives what was done: "applied", "unchanged", or "written" for an nginx that does not run.
        Raises TrimtabError, and the old weights are in force.
        """
        with self._lock:
            self._pending = None
            with self._only_one(self._config.stock.verify_seconds):
                _, token = render_upstreams(self._config, weights)
                found = _TOKEN.search(self._file_text() or "")
                done = "unchanged"
                # What is in the comments needs no reload.
                if not (found and found[4] == _digest(token) and self._serves(found[1])):
                    done = self._put(weights)
                self._generation = weights.generation if weights else 0
                return done

    def restore(self, text: str) -> str:
        """Put a file's former content in force again; gives what was done. Raises TrimtabError."""
        with self._lock:
            self._pending = None
            with self._only_one(self._config.stock.verify_seconds):
                found = _TOKEN.search(text)
                if found is None:
                    raise TrimtabError(f"the former {self._file} is not Trimtab's")
                if self._file_text() == text and self._serves(found[1]):
                    return "unchanged"
                return self._replace(text, found[1], alone=None)

    def text(self) -> str | None:
        """What the upstream file holds now; None when there is none. Raises TrimtabError."""
        return self._file_text()

    @property
    def generation(self) -> int:
        """That of the weights which nginx serves, or differs from by nothing material."""
        return self._generation

    def status(self) -> dict[str, Any]:
        """For JSON: {"file", "generation" in force, "pending_generation" or None, "reloads",
        "next_reload_seconds"}."""
        pending = self._pending
        return {
            "file": str(self._file),
            "generation": self.generation,
            "pending_generation": pending.generation if pending else None,
            "reloads": self._governor.count,
            "next_reload_seconds": round(self._governor.wait_seconds(), 1),
        }

    def _go_on(self) -> None:
        weights = self._pending
        if weights is None:
            return
        with self._only_one():
            if self._material(weights):
                if self._governor.wait_seconds() > 0:
                    return
                self._put(weights)
            self._pending = None
            self._generation = weights.generation

    # What has changed

    def _material(self, weights: Weights) -> bool:
        """Whether `weights` are worth a reload."""
        text, token = render_upstreams(self._config, weights)
        before = self._file_text()
        found = _TOKEN.search(before or "")
        if before is None or found is None or _skeleton(before) != _skeleton(text):
            return True
        if not self._serves(found[1]):
            return True
        if _digest(token) == found[4]:
            return False
        limit = 1 + self._config.stock.material_ratio
        was, now = _shares(before), _shares(text)
        if was.keys() != now.keys():
            return True
        for key, share in now.items():
            # A server that is down has none.
            if (share > 0) != (was[key] > 0):
                return True
            if share > 0 and not 1 / limit <= share / was[key] <= limit:
                return True
        return False

    def _serves(self, token: str) -> bool:
        """Whether nginx serves a file of this token, or will when it starts."""
        served = self._service.served()
        if served is None:
            return not self._service.running()
        return served == token

    def _file_text(self) -> str | None:
        try:
            return self._file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise TrimtabError(f"include_file {self._file} cannot be read: {error}") from None

    # The change

    def _put(self, weights: Weights | None) -> str:
        text, token = render_upstreams(self._config, weights)
        alone, _ = render_upstreams(self._config, weights, status=False)
        return self._replace(text, token, alone)

    def _replace(self, text: str, token: str, alone: str | None) -> str:
        """Change the file to `text`; `alone` is what of it can be checked by itself."""
        # Also one that fails: what nginx refuses is not tried again at once.
        self._governor.spend()
        old = self._file_text()
        if old is not None and _TOKEN.search(old) is None:
            raise TrimtabError(
                f"include_file {self._file} was not written by Trimtab and is left alone; move it "
                "away, or set another include_file in [stock]"
            )
        new = self._beside("new")
        self._write(new, text)
        self._step("written")
        if alone is not None:
            try:
                self._service.check_alone(alone)
            except TrimtabError as error:
                new.unlink(missing_ok=True)
                raise TrimtabError(f"{error}\n  nothing has changed") from None
        self._step("checked")
        self._keep()
        self._step("kept")
        new.replace(self._file)
        self._sync()
        self._step("swapped")
        reloaded = False
        try:
            self._service.check()
            self._step("tested")
            done = "written"
            # One that does not run finds the file when it starts.
            if self._service.running():
                reloaded = True
                self._service.reload()
                self._step("reloaded")
                self._service.wait(token)
                done = "applied"
            self._step("verified")
        except BaseException as error:
            told = self._undo(old, reloaded)
            if isinstance(error, TrimtabError):
                raise TrimtabError(f"{error}\n  {told}") from None
            raise
        self._beside("old").unlink(missing_ok=True)
        self._sync()
        self._step("done")
        _log.info("%s: %s", self._file, f"generation {token} {done}")
        return done

    def _undo(self, old: str | None, reloaded: bool) -> str:
        """Bring the old file back; gives what came of it."""
        if old is None:
            self._file.unlink(missing_ok=True)
            self._sync()
            return f"{self._file} has been removed again"
        self._beside("old").replace(self._file)
        self._sync()
        if not reloaded:
            return f"the old {self._file} is back; nginx was not reloaded"
        try:
            self._service.reload()
            if found := _TOKEN.search(old):
                self._service.wait(found[1])
        except TrimtabError as error:
            _log.warning("after restoring %s: %s", self._file, error)
            return f"the old {self._file} is back, but nginx did not take it: see the log"
        return f"the old {self._file} is back and in force"

    def _recover(self) -> None:
        """Finish or undo what a writer that was killed had begun."""
        self._beside("new").unlink(missing_ok=True)
        old = self._beside("old")
        if not old.exists():
            return
        try:
            self._service.check()
        except TrimtabError as error:
            _log.warning("a change was interrupted, and %s; the old file is put back", error)
            old.replace(self._file)
        else:
            # Whether it is served is seen next.
            old.unlink()
        self._sync()

    # Files

    def _beside(self, what: str) -> Path:
        # Hidden: `include directory/*` leaves it out.
        return self._file.with_name(f".{self._file.name}.trimtab-{what}")

    @contextlib.contextmanager
    def _only_one(self, patience_seconds: float = 0.0) -> Iterator[None]:
        """Hold the file against other writers. Raises TrimtabError when there is one for longer
        than `patience_seconds`."""
        path = self._beside("lock")
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise TrimtabError(
                f"include_file {self._file} in [stock]: cannot write beside it: {error.strerror}"
            ) from None
        try:
            give_up = time.monotonic() + patience_seconds
            while not _locked(lock):
                if time.monotonic() >= give_up:
                    raise TrimtabError(
                        f"another trimtab changes {self._file} at this moment; nothing has been "
                        "changed"
                    )
                time.sleep(_LOCK_SECONDS)
            self._recover()
            yield
        except OSError as error:
            raise TrimtabError(f"cannot change {self._file}: {error}") from None
        finally:
            os.close(lock)

    def _write(self, path: Path, text: str) -> None:
        mode = 0o644
        with contextlib.suppress(FileNotFoundError):
            mode = self._file.stat().st_mode & 0o777
        with path.open("w", encoding="utf-8", newline="\n") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())

    def _keep(self) -> None:
        """The present file under a second name, which survives the swap."""
        if not self._file.exists():
            return
        try:
            os.link(self._file, self._beside("old"))
        except OSError:
            # Some file systems have no links, and some kernels none to files of others.
            self._write(self._beside("old"), self._file.read_text(encoding="utf-8"))
        self._sync()

    def _sync(self) -> None:
        directory = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _digest(token: str) -> str:
    return token.rpartition("-")[2]


def _skeleton(text: str) -> str:
    """A file without what changes between generations."""
    plain = _TOKEN.sub("", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return re.sub(r" weight=[0-9]+| down;", "", plain).replace(";", "")


def _shares(text: str) -> Mapping[tuple[str, str], float]:
    """The share of each server in its group by upstream and address; 0 when it is down."""
    shares: dict[tuple[str, str], float] = {}
    for name, block in _UPSTREAM.findall(text):
        servers = [(address, 0 if down else int(n)) for address, n, down in _SERVER.findall(block)]
        total = sum(n for _, n in servers) or 1
        shares.update({(name, address): n / total for address, n in servers})
    return shares
