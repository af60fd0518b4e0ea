"""The journal: what the controller did and why, newest last, bounded."""

from collections import deque
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["Entry", "Journal"]

# At a minute a decision this is more than four hours, and a small page.
MOST_ENTRIES: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened.

    time: seconds since 1970. generation: in force after it. state: index of the cluster, None
    before there are any. action: the profile then. reward and art_per_1000: of the decision window
    that ended, else None. changes: how many changes of weights the entry stands for.
    """

    time: float
    generation: int
    state: int | None
    action: str
    reason: str
    reward: float | None = None
    art_per_1000: float | None = None
    changes: int = 0


class Journal:
    """Entries; a run of changes for one reason becomes one entry, the newest. One thread writes."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=MOST_ENTRIES)

    def add(self, entry: Entry) -> None:
        """Append an entry, or replace the last one if both are changes for the same reason."""
        last = self._entries[-1] if self._entries else None
        if last and last.changes and entry.changes and last.reason == entry.reason:
            self._entries.pop()
            total = last.changes + entry.changes
            entry = replace(entry, changes=total)
        self._entries.append(entry)

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(self._entries)
