"""The journal: what the controller did and why, newest last, bounded."""

from collections import Counter, deque
from dataclasses import dataclass, replace
from typing import Final

__all__ = ["KINDS", "Entry", "Journal"]

# What an entry may be about: the first weights, weights that followed the estimates, the choice of
# a profile, what was observed (states, deadlines), what an operator did, and what went wrong.
KINDS: Final = ("start", "weights", "decision", "observation", "operator", "trouble")

# At a minute a decision this is more than four hours, and a small page.
MOST_ENTRIES: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened.

    time: seconds since 1970. generation: in force after it. state: index of the cluster, None
    before there are any. action: the profile then. reward and art_per_1000: of the decision window
    that ended, else None. changes: how many changes of weights the entry stands for.
    kind: one of KINDS. who: the operator who asked for it, or "".
    """

    time: float
    generation: int
    state: int | None
    action: str
    reason: str
    reward: float | None = None
    art_per_1000: float | None = None
    changes: int = 0
    kind: str = "weights"
    who: str = ""


class Journal:
    """Entries; a run of changes for one reason becomes one entry, the newest. One thread writes."""

    def __init__(self) -> None:
        self._entries: deque[Entry] = deque(maxlen=MOST_ENTRIES)
        self._counts: Counter[str] = Counter()

    def add(self, entry: Entry) -> None:
        """Append an entry, or replace the last one if both are changes for the same reason."""
        self._counts[entry.kind] += 1
        last = self._entries[-1] if self._entries else None
        if last and last.changes and entry.changes and last.reason == entry.reason:
            self._entries.pop()
            total = last.changes + entry.changes
            entry = replace(entry, changes=total)
        self._entries.append(entry)

    def counts(self) -> dict[str, int]:
        """By kind, how many entries were ever added."""
        return {kind: self._counts[kind] for kind in KINDS}

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(self._entries)
