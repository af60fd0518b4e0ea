"""The one file of upstreams that Trimtab owns in stock mode: its changes on disk, and reading it.

When to change it and what nginx makes of it is `stock`'s. The file tells its own generation (its
token, which workers show too), so that there is no second record that could disagree.
"""

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from trimtab.errors import TrimtabError

__all__ = ["UpstreamFile", "digest", "generation_of", "shares", "skeleton", "token_of"]

_TOKEN: Final = re.compile(r'return 200 "trimtab ([0-9]+-([0-9]+)-[0-9a-f]{16})\\n";')
_UPSTREAM: Final = re.compile(r"^upstream (\S+) \{$(.*?)^\}$", re.MULTILINE | re.DOTALL)
_SERVER: Final = re.compile(r"^ +server (\S+) weight=([0-9]+)[^;]*?( down)?;$", re.MULTILINE)

# How often to look whether another writer is done; a change takes half a second or more.
_LOCK_SECONDS: Final = 0.02


class UpstreamFile:
    """A file that is replaced as a whole. For one thread at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._new = self._beside("new")
        self._old = self._beside("old")

    def _beside(self, what: str) -> Path:
        # Hidden: `include directory/*` leaves it out.
        return self.path.with_name(f".{self.path.name}.trimtab-{what}")

    def text(self) -> str | None:
        """Its content; None when it is not there. Raises TrimtabError."""
        try:
            return self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise TrimtabError(f"include_file {self.path} cannot be read: {error}") from None

    @property
    def interrupted(self) -> bool:
        """Whether a writer was killed after it had kept the old file."""
        return self._old.exists()

    def write_beside(self, text: str) -> None:
        """Put what comes next beside it, on disk for good."""
        self._write(self._new, text)

    def forget_beside(self) -> None:
        """What was put beside it is not needed."""
        self._new.unlink(missing_ok=True)

    def forget_all_beside(self) -> None:
        """Before the swap: nothing that lies beside it is needed. What cannot be removed stays."""
        for path in (self._new, self._old, self._beside("copy")):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def keep(self) -> None:
        """Give the present content a second name, which survives the swap."""
        if not self.path.exists():
            return
        try:
            os.link(self.path, self._old)
        except OSError:
            # Some file systems have no links, and some kernels none to files of others.
            copy = self._beside("copy")
            self._write(copy, self.path.read_text(encoding="utf-8"))
            copy.replace(self._old)
        self._sync()

    def swap(self) -> None:
        """What is beside it takes its place."""
        self._new.replace(self.path)
        self._sync()

    def bring_back(self) -> bool:
        """The old content is back; False when there was none and the file has been removed."""
        if kept := self._old.exists():
            self._old.replace(self.path)
        else:
            self.path.unlink(missing_ok=True)
        self._sync()
        return kept

    def forget_old(self) -> None:
        """The present content stays."""
        self._old.unlink(missing_ok=True)
        self._sync()

    @contextlib.contextmanager
    def held(self, patience_seconds: float = 0.0) -> Iterator[None]:
        """Hold it against other writers. Raises TrimtabError when there is one for longer than
        `patience_seconds`, and for every OSError within."""
        path = self._beside("lock")
        try:
            # Readable for others: root and the policy server's user may both come.
            lock = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise TrimtabError(
                f"include_file {self.path} in [stock]: cannot write beside it: {error.strerror}"
            ) from None
        try:
            give_up = time.monotonic() + patience_seconds
            while not _locked(lock):
                if time.monotonic() >= give_up:
                    raise TrimtabError(
                        f"another trimtab changes {self.path} at this moment; nothing has been "
                        "changed"
                    )
                time.sleep(_LOCK_SECONDS)
            yield
        except OSError as error:
            raise TrimtabError(f"cannot change {self.path}: {error.strerror or error}") from None
        finally:
            os.close(lock)

    def _write(self, path: Path, text: str) -> None:
        mode = 0o644
        with contextlib.suppress(FileNotFoundError):
            mode = self.path.stat().st_mode & 0o777
        try:
            with path.open("w", encoding="utf-8", newline="\n") as file:
                os.fchmod(file.fileno(), mode)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            # A write that fails does not say which file it was.
            raise OSError(error.errno, error.strerror, str(path)) from None

    def _sync(self) -> None:
        directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
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


def token_of(text: str | None) -> str | None:
    """The token in a file's content; None for a file that is not Trimtab's."""
    found = _TOKEN.search(text or "")
    return found[1] if found else None


def generation_of(text: str | None) -> int:
    """The generation in a file's content; 0 without any."""
    found = _TOKEN.search(text or "")
    return int(found[2]) if found else 0


def digest(token: str) -> str:
    """The part of a token that stands for the content."""
    return token.rpartition("-")[2]


def skeleton(text: str) -> str:
    """A content without what changes between generations."""
    plain = _TOKEN.sub("", re.sub(r"^#.*\n", "", text, flags=re.MULTILINE))
    return re.sub(r" weight=[0-9]+| down;", "", plain).replace(";", "")


def shares(text: str) -> Mapping[tuple[str, str], float]:
    """The share of each server in its group by upstream and address; 0 when it is down."""
    found: dict[tuple[str, str], float] = {}
    for name, block in _UPSTREAM.findall(text):
        servers = [(address, 0 if down else int(n)) for address, n, down in _SERVER.findall(block)]
        total = sum(n for _, n in servers) or 1
        found.update({(name, address): n / total for address, n in servers})
    return found
