"""The journal: what the controller did and why, newest last, bounded."""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

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

    def to_state(self) -> list[dict[str, Any]]:
        """The entries as JSON-able data."""
        return [asdict(entry) for entry in self._entries]

    @staticmethod
    def entries_of(state: Iterable[Mapping[str, Any]]) -> tuple[Entry, ...]:
        """The entries in what `to_state` gave. Raises KeyError, TypeError or ValueError."""
        entries = tuple(Entry(**told) for told in state)[-MOST_ENTRIES:]
        for e in entries:
            texts = (e.action, e.reason, e.kind, e.who)
            numbers = (e.time, e.generation, e.changes, e.state, e.reward, e.art_per_1000)
            if not all(isinstance(t, str) for t in texts) or e.kind not in KINDS:
                raise ValueError(f"an entry of the journal is of kind {e.kind!r}")
            if not all(n is None or isinstance(n, int | float) for n in numbers):
                raise ValueError("an entry of the journal has a text for a number")
        return entries

    def restore(self, entries: Iterable[Entry]) -> None:
        """Put entries of before the start in front; they count nothing."""
        now = tuple(self._entries)
        self._entries.clear()
        self._entries.extend((*entries, *now))

    def counts(self) -> dict[str, int]:
        """By kind, how many entries were ever added."""
        return {kind: self._counts[kind] for kind in KINDS}

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first."""
        return tuple(self._entries)
