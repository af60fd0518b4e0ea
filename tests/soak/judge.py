"""Who lost a request: what a killed process had in its hands is that process's loss, the rest is
Trimtab's. And whether memory is flat, and generations rise."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from trimtab.load.records import Bools, Ending, Records

__all__ = ["Disturbance", "Life", "Losses", "backward", "growth_ratio", "judge", "lives"]

# From a kill to the reset at the client's, and between the clocks of two processes.
SLACK_SECONDS: Final = 0.1

# From the signal until the last old worker has closed its idle connections: the master reads the
# configuration first and starts new workers, which takes seconds on a busy machine.
RELOAD_SECONDS: Final = 3.0

# A client whose connection breaks knows it by then: loopback resets at once.
BREAK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Disturbance:
    """A fault as the load saw it: seconds from the start of the load.

    `kind` is "worker killed" (at `begin`), "server killed" (at `begin`, back by `end`), "server
    stopped" (answers nothing from `begin` to `end`) or "reload" (from the signal at `begin` until
    there is a new worker at `end`); what else happens excuses no loss.
    """

    kind: str
    begin: float
    end: float


@dataclass(frozen=True, slots=True)
class Losses:
    """Requests that did not get a whole 2xx answer, by who lost them; `unexplained` as text."""

    requests: int
    by_killed_worker: int
    by_server: int
    by_reload: int
    unexplained: tuple[str, ...]

    @property
    def lost(self) -> int:
        """Those that neither a killed worker, a server nor nginx's reload answers for."""
        return len(self.unexplained)


def judge(records: Records, disturbances: Sequence[Disturbance], posts: str) -> Losses:
    """Attribute every failed request. `posts` is the class that may not be sent twice."""
    failed = records.failed
    worker = np.zeros(len(records), dtype=np.bool_)
    server = np.zeros(len(records), dtype=np.bool_)
    reload = np.zeros(len(records), dtype=np.bool_)
    post = records.class_index == records.classes.index(posts)
    for each in disturbances:
        begin, end = each.begin - SLACK_SECONDS, each.begin + SLACK_SECONDS
        if each.kind == "worker killed":
            broken = np.isin(records.ending, (Ending.RESET, Ending.SHORT))
            soon = records.end <= each.begin + BREAK_SECONDS
            worker |= broken & (records.send <= end) & (records.end >= begin) & soon
        elif each.kind == "reload":
            # An old worker closes a kept connection that was idle when it looked, with a request
            # on its way there: unread, so a client may send it again. Only on a kept one, and not
            # a byte of an answer.
            unread = records.reused & (records.ending == Ending.RESET)
            near = records.send <= each.end + RELOAD_SECONDS
            reload |= unread & near & (records.end >= begin)
        elif each.kind == "server killed":
            # In flight there at that moment, and not to be sent twice.
            cut = (records.ending == Ending.STATUS) & (records.status == 502)
            server |= post & cut & (records.send <= end) & (records.end >= begin)
        elif each.kind == "server stopped":
            mute = (records.ending == Ending.STATUS) & (records.status == 504)
            server |= post & mute & (records.send <= each.end) & (records.end >= begin)
    return Losses(
        requests=len(records),
        by_killed_worker=int((failed & worker).sum()),
        by_server=int((failed & server & ~worker).sum()),
        by_reload=int((failed & reload & ~worker & ~server).sum()),
        unexplained=tuple(_told(records, failed & ~worker & ~server & ~reload)),
    )


def _told(records: Records, lost: Bools) -> Iterable[str]:
    for row in np.flatnonzero(lost):
        ending = Ending(int(records.ending[row]))
        what = f"status {records.status[row]}" if ending is Ending.STATUS else ending.name.lower()
        yield (
            f"{records.classes[records.class_index[row]]} sent at {records.send[row]:.2f} s, "
            f"ended at {records.end[row]:.2f} s: {what}"
        )


def growth_ratio(samples: Sequence[tuple[float, float]], warm_up: float) -> float:
    """Median bytes of the last third of the time over those of the first, the warm-up left out.

    `samples` are (seconds, bytes) of one role's processes. 1 where there is too little to say. The
    median, as a process that has just fitted its states has twice its memory until it is killed.
    """
    kept = [(at, size) for at, size in samples if at >= warm_up]
    if not kept:
        return 1.0
    begin, end = kept[0][0], kept[-1][0]
    third = (end - begin) / 3
    early = [size for at, size in kept if at <= begin + third]
    late = [size for at, size in kept if at >= end - third]
    return float(np.median(late) / np.median(early))


@dataclass(frozen=True, slots=True)
class Life:
    """The memory of one process: from when to when it was looked at, largest, and least squares'
    slope. A role's own series hides a leak where its process is killed again and again."""

    pid: int
    begin: float
    end: float
    largest: float
    bytes_per_minute: float


def lives(samples: Iterable[tuple[float, int, float]], warm_up: float) -> list[Life]:
    """The processes of one role, the longest life first; `samples` are (seconds, pid, bytes).

    Each process's first `warm_up` seconds are left out: it reads its packages and its state then.
    Those with no two samples after that are left out whole.
    """
    of: dict[int, list[tuple[float, float]]] = {}
    for at, pid, size in samples:
        of.setdefault(pid, []).append((at, size))
    found = []
    for pid, series in of.items():
        kept = np.array([each for each in series if each[0] >= series[0][0] + warm_up])
        if len(kept) < 2:
            continue
        at, sizes = kept[:, 0], kept[:, 1]
        away = at - at.mean()
        slope = float(away @ sizes / (away @ away)) * 60
        found.append(Life(pid, float(at[0]), float(at[-1]), float(sizes.max()), slope))
    return sorted(found, key=lambda life: life.begin - life.end)


def backward(seen: Iterable[tuple[int, int]]) -> list[str]:
    """Where the generation that nginx uses fell within an epoch; `seen` are (epoch, generation)."""
    largest: Counter[int] = Counter()
    said = []
    for epoch, generation in seen:
        if generation < largest[epoch]:
            said.append(f"generation {generation} after {largest[epoch]} in epoch {epoch}")
        largest[epoch] = max(largest[epoch], generation)
    return said
