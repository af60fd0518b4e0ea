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
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from trimtab.actuators.governor import Governor
from trimtab.actuators.nginx_service import NginxService
from trimtab.actuators.upstream_file import (
    UpstreamFile,
    digest,
    generation_of,
    shares,
    skeleton,
    token_of,
)
from trimtab.actuators.upstreams_conf import render_upstreams
from trimtab.config import Config
from trimtab.errors import TrimtabError
from trimtab.model import Weights

__all__ = ["STEPS", "Stock"]

_log: Final = logging.getLogger(__name__)

# Where a change can be interrupted, in order.
STEPS: Final = (
    "written", "checked", "kept", "swapped", "tested", "reloaded", "verified", "done",
)  # fmt: skip

# Reloads longer ago do not count.
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
        self._file = UpstreamFile(config.stock.include_file.absolute())
        self._service = service or NginxService(config)
        self._step = step
        self._lock = threading.Lock()
        self._pending: Weights | None = None
        self._governor = Governor(
            config.stock.reload_min_seconds, config.stock.reloads_per_hour, clock
        )
        self._generation = 0
        with contextlib.suppress(TrimtabError):
            self._generation = generation_of(self._file.text())
        with contextlib.suppress(OSError):
            # A restart of ours is no reason for a reload more.
            age = wall() - self._file.path.stat().st_mtime
            if 0 <= age < _HOUR_SECONDS:
                self._governor.remember(age)

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
                before = token_of(self._file.text())
                done = "unchanged"
                # What is in the comments needs no reload.
                if not (before and digest(before) == digest(token) and self._serves(before)):
                    done = self._put(weights)
                self._generation = weights.generation if weights else 0
                return done

    def restore(self, text: str) -> str:
        """Put a file's former content in force again; gives what was done. Raises TrimtabError."""
        with self._lock:
            self._pending = None
            with self._only_one(self._config.stock.verify_seconds):
                token = token_of(text)
                if token is None:
                    raise TrimtabError(f"the former {self._file.path} is not Trimtab's")
                if self._file.text() == text and self._serves(token):
                    return "unchanged"
                return self._replace(text, token, alone=None)

    def text(self) -> str | None:
        """What the upstream file holds now; None when there is none. Raises TrimtabError."""
        return self._file.text()

    @property
    def generation(self) -> int:
        """That of the weights which nginx serves, or differs from by nothing material."""
        return self._generation

    def status(self) -> dict[str, Any]:
        """For JSON: {"file", "generation" in force, "pending_generation" or None, "reloads",
        "next_reload_seconds"}."""
        pending = self._pending
        return {
            "file": str(self._file.path),
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
        before = self._file.text()
        old = token_of(before)
        if before is None or old is None or skeleton(before) != skeleton(text):
            return True
        if not self._serves(old):
            return True
        if digest(token) == digest(old):
            return False
        limit = 1 + self._config.stock.material_ratio
        was, now = shares(before), shares(text)
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

    @contextlib.contextmanager
    def _only_one(self, patience_seconds: float = 0.0) -> Iterator[None]:
        """Hold the file, in good order."""
        with self._file.held(patience_seconds):
            self._recover()
            yield

    # The change

    def _put(self, weights: Weights | None) -> str:
        text, token = render_upstreams(self._config, weights)
        alone, _ = render_upstreams(self._config, weights, status=False)
        return self._replace(text, token, alone)

    def _replace(self, text: str, token: str, alone: str | None) -> str:
        """Change the file to `text`; `alone` is what of it can be checked by itself."""
        # Also one that fails: what nginx refuses is not tried again at once.
        self._governor.spend()
        old = self._file.text()
        if old is not None and token_of(old) is None:
            raise TrimtabError(
                f"include_file {self._file.path} was not written by Trimtab and is left alone; "
                "move it away, or set another include_file in [stock]"
            )
        try:
            self._file.write_beside(text)
            self._step("written")
            if alone is not None:
                self._service.check_alone(alone)
            self._step("checked")
            self._file.keep()
            self._step("kept")
        except (OSError, TrimtabError) as error:
            self._file.forget_all_beside()
            raise TrimtabError(f"{_told(error)}\n  nothing has changed") from None
        reloaded = False
        try:
            self._file.swap()
            self._step("swapped")
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
            if isinstance(error, TrimtabError | OSError):
                raise TrimtabError(f"{_told(error)}\n  {told}") from None
            raise
        self._file.forget_old()
        self._step("done")
        _log.info("%s: generation %s %s", self._file.path, token, done)
        return done

    def _undo(self, old: str | None, reloaded: bool) -> str:
        """Bring the old file back; gives what came of it."""
        path = self._file.path
        if old is not None and not self._file.interrupted:
            # Somebody has removed what lay beside; without the file nginx could not start.
            self._file.write_beside(old)
            self._file.swap()
        elif not self._file.bring_back():
            return f"{path} has been removed again"
        if not reloaded:
            return f"the old {path} is back; nginx was not reloaded"
        token = token_of(old)
        try:
            self._service.reload()
            if token:
                self._service.wait(token)
        except TrimtabError as error:
            # Whoever may not reload has not done so before either.
            if token and self._service.served() == token:
                return f"the old {path} is back, and nginx serves it as before"
            _log.warning("after restoring %s: %s", path, error)
            return f"the old {path} is back, but nginx did not take it: see the log"
        return f"the old {path} is back and in force"

    def _recover(self) -> None:
        """Finish or undo what a writer that was killed had begun."""
        self._file.forget_beside()
        if not self._file.interrupted:
            return
        try:
            self._service.check()
        except TrimtabError as error:
            _log.warning("a change was interrupted, and %s; the old file is put back", error)
            self._file.bring_back()
        else:
            # Whether it is served is seen next.
            self._file.forget_old()


def _told(error: OSError | TrimtabError) -> str:
    if isinstance(error, TrimtabError):
        return str(error)
    return f"cannot write {error.filename or 'a file'}: {error.strerror or error}"
