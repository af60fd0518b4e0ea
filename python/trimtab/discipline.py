"""Whether a server queues the requests beyond its slots, or shares the slots among all of them.

Both do the same work in a second, so neither their completions nor the classes that go there tell
them apart: a balancer sends long requests to where the wait is short. What tells them apart are
the requests that found a free slot. A balancer does not know how much work a request is, so those
requests are like all others of their class; in a queue (first come, first served) they take their
own service time and nothing else, where slots are shared they are slowed down by whatever comes
after them. With D_j completions of class j and u_j the mean time of those that found a free slot,

    excess = Σ_j D_j·u_j − B,   B = Σ_n min(n, k)·T_n   slot-seconds that were busy

is 0 for a queue: B is the work that was done. It is divided by what an M/M/1 server that shares
has: a request that finds it empty takes 2/(2 − ρ) times its service, and Q = Σ_n (n − k)⁺·T_n, the
request-seconds beyond the slots, is B·ρ/(1 − ρ), so that excess = B·Q/(2·B + Q). In

    ratio = excess·(2·B + Q)/(B·Q)

a queue has 0, and servers that share had 0.4 to 1.3 in the twin, with 1 to 16 slots at 50 to 85%
load. Blocks of some seconds give its error: the residuals excess − (excess/Q)·Q of a ratio of sums.

It takes slots that are known exactly: one too few looks like sharing. It sees nothing where
requests are held in the balancer, or the load is so low that hardly any is beyond the slots.

No I/O: counters in, an estimate out.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from trimtab.model import PairCounters, Window

__all__ = [
    "FIFO",
    "SHARING",
    "Discipline",
    "Disciplines",
    "Excess",
    "likelihood_ratio",
    "likely_sharing",
    "news",
]

FIFO: Final = "fifo"
SHARING: Final = "ps"

# Between a queue's 0 and the 0.4 and more of servers that share, nearer to the queue: a hand-over
# of a tenth of a service time between two requests looks like 0.05 to 0.1.
BOUND: Final = 0.2

# The same in numbers: the ratio of servers that share, how far the true ones of either kind lie
# apart, and the share of all groups of servers that share as far as nothing is known: few, as most
# of what nginx proxies to has workers.
SHARED_RATIO: Final = 0.85
SHARED_SPREAD: Final = 0.3
QUEUE_SPREAD: Final = 0.1
SHARED_BEFORE: Final = 0.1

# One server says no more than e^4 to one, all together no more than 20 to one of another.
MOST_LOG_RATIO: Final = 4.0
MOST_ODDS: Final = 20.0
LIKELY_ODDS: Final = 5.0

# A block is long against a service time, so that the requests under way at its ends do not count,
# and has enough requests that found a free slot for their mean; it goes on until it has, and is
# dropped when it takes long: speeds change.
BLOCK_SECONDS: Final = 20.0
BLOCK_UNQUEUED: Final = 10
MOST_BLOCK_SECONDS: Final = 120.0

# A class of so small a part of a block's requests may lack such requests.
MINOR_RATIO: Final = 0.01

# Two minutes at least until anything is sure, and ten that are remembered.
LEAST_BLOCKS: Final = 6
MOST_BLOCKS: Final = 30

# Less beyond the slots, as part of the busy time: nothing to see.
LEAST_QUEUED_RATIO: Final = 0.02

# As in `estimate`: failed requests held slots, and were not completed.
MOST_STRAY_RATIO: Final = 0.02

# Student's point for one mistake in a thousand to either side, by degrees of freedom.
_FREE: Final = (5.0, 6.0, 8.0, 10.0, 14.0, 19.0, 29.0)
_STUDENT: Final = (5.89, 5.21, 4.50, 4.14, 3.79, 3.58, 3.40)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discipline:
    """What was found of one server: see the module for `ratio`; `error` is half the width of its
    interval, of which two in a thousand are wrong."""

    ratio: float
    error: float

    @property
    def value(self) -> str:
        """ "fifo" or "ps", the likelier one."""
        return SHARING if self.ratio > BOUND else FIFO

    @property
    def sure(self) -> bool:
        """Whether the interval is on one side of the bound."""
        return abs(self.ratio - BOUND) > self.error


def likelihood_ratio(stretch: float, error: float, busy: float, queued: float) -> float:
    """How many times as likely what half a minute shows is of a server that shares as of one that
    queues: sooner than `Discipline` is sure, for what costs little where it is wrong.

    Args:
        stretch: how many times B the completions would have taken at the times of those that found
            a free slot: 1 + excess/B.
        error: standard deviation of its logarithm.
        busy, queued: B and Q of the module.
    """
    visible = queued / (2 * busy + queued) if busy > 0 else 0.0
    if visible < LEAST_QUEUED_RATIO / 2 or not (stretch > 0 and math.isfinite(error)):
        return 1.0
    ratio, chance = (stretch - 1) / visible, error * stretch / visible
    as_queue = _log_normal(ratio, 0.0, math.hypot(chance, QUEUE_SPREAD))
    as_shared = _log_normal(ratio, SHARED_RATIO, math.hypot(chance, SHARED_SPREAD))
    return math.exp(min(max(as_shared - as_queue, -MOST_LOG_RATIO), MOST_LOG_RATIO))


def likely_sharing(ratios: Mapping[str, float]) -> frozenset[str]:
    """The servers that are likely to share, from the likelihood ratio of each, of servers that
    stand beside each other. These are mostly of one kind, so all together say what to expect of
    each."""
    odds = SHARED_BEFORE / (1 - SHARED_BEFORE) * math.prod(ratios.values())
    before = min(max(odds, 1 / MOST_ODDS), MOST_ODDS)
    return frozenset(a for a, ratio in ratios.items() if before * ratio > LIKELY_ODDS)


def _log_normal(x: float, mean: float, deviation: float) -> float:
    return -(((x - mean) / deviation) ** 2) / 2 - math.log(deviation)


@dataclass(slots=True)
class _Block:
    """The sums of a block that goes on; lists are by class."""

    seconds: float = 0.0
    busy: float = 0.0
    queued: float = 0.0
    done: list[float] = field(default_factory=list)
    unqueued: list[float] = field(default_factory=list)
    unqueued_seconds: list[float] = field(default_factory=list)


class Excess:
    """The blocks of one server."""

    def __init__(self) -> None:
        self._block = _Block()
        self._slots = 0
        # (excess, queued, busy) of each.
        self._blocks: deque[tuple[float, float, float]] = deque(maxlen=MOST_BLOCKS)

    def add(
        self,
        seconds: float,
        slots: int,
        seconds_at: Sequence[float],
        done: Sequence[float],
        unqueued: Sequence[float],
        unqueued_seconds: Sequence[float],
    ) -> None:
        """Take a window in: its length, the slots of the server, seconds with 1, 2, … in flight,
        and by class the completions, and how many of them found a free slot and took how long."""
        if slots != self._slots:
            self.forget()
            self._slots = slots
        block = self._block
        block.seconds += seconds
        for n, t in enumerate(seconds_at, 1):
            block.busy += min(n, slots) * t
            block.queued += max(n - slots, 0) * t
        for name, more in (
            ("done", done),
            ("unqueued", unqueued),
            ("unqueued_seconds", unqueued_seconds),
        ):
            sums = getattr(block, name) or [0.0] * len(more)
            setattr(block, name, [a + b for a, b in zip(sums, more, strict=True)])
        if block.seconds >= BLOCK_SECONDS:
            self._close()

    def _close(self) -> None:
        block, total = self._block, sum(self._block.done)
        means = []
        for done, count, seconds in zip(
            block.done, block.unqueued, block.unqueued_seconds, strict=True
        ):
            if done > MINOR_RATIO * total and count < BLOCK_UNQUEUED:
                if block.seconds >= MOST_BLOCK_SECONDS:
                    self._block = _Block()
                return
            means.append(seconds / count if count else 0.0)
        # What lacks a mean of its own takes the mean of all.
        known = sum(d for d, m in zip(block.done, means, strict=True) if m)
        work = sum(d * m for d, m in zip(block.done, means, strict=True))
        self._block = _Block()
        if known > 0:
            self._blocks.append((work * total / known - block.busy, block.queued, block.busy))

    def skip(self) -> None:
        """Drop the block that goes on: something in it was not as it should be."""
        self._block = _Block()

    def forget(self) -> None:
        """Drop everything."""
        self._block = _Block()
        self._blocks.clear()

    def discipline(self) -> Discipline | None:
        """What the blocks say; None while they are few, or hardly anything was queued."""
        if len(self._blocks) < LEAST_BLOCKS:
            return None
        excess, queued, busy = np.array(self._blocks).T
        all_queued, all_busy = float(queued.sum()), float(busy.sum())
        if not all_queued > LEAST_QUEUED_RATIO * all_busy:
            return None
        # One block in which nearly all was queued decides alone, and shows no residual.
        blocks = all_queued**2 / float((queued**2).sum())
        if blocks < LEAST_BLOCKS / 2:
            return None
        ratio = float(excess.sum()) / all_queued
        residual = float(((excess - ratio * queued) ** 2).sum())
        deviation = math.sqrt(residual * blocks / (blocks - 1)) / all_queued
        student = float(np.interp(blocks - 1, _FREE, _STUDENT))
        scale = 2 + all_queued / all_busy
        return Discipline(ratio=ratio * scale, error=student * deviation * scale)


def news(
    before: Mapping[str, Discipline],
    after: Mapping[str, Discipline],
    configured: Mapping[str, str | None],
) -> Iterator[str]:
    """What is newly sure, in words for the journal; `configured` by address, None where silent."""
    for address, found in after.items():
        was = before.get(address)
        if not found.sure or (was and was.sure and was.value == found.value):
            continue
        does = "shares its slots" if found.value == SHARING else "queues requests beyond its slots"
        told = configured.get(address)
        but = (
            f"; the configuration says {told}, which stands"
            if told not in (None, found.value)
            else ""
        )
        yield (f"{address} {does}: a queue has 0, it {found.ratio:.2f} ± {found.error:.2f}{but}")


class Disciplines:
    """The servers of a configuration.

    Args:
        classes: by address the classes that it serves.
    """

    def __init__(self, classes: Mapping[str, Sequence[str]]) -> None:
        self._servers = {address: (tuple(names), Excess()) for address, names in classes.items()}
        self._kept: dict[str, Discipline] = {}

    def add(self, of: Window, slots: Mapping[str, int]) -> None:
        """Take a window of a single balancer in. `slots` are those that are known exactly."""
        for address, (names, excess) in self._servers.items():
            counters = of.addresses.get(address)
            k = slots.get(address)
            if k is None or counters is None or k >= len(counters.seconds_at):
                excess.forget()
                self._kept.pop(address, None)
                continue
            pairs = [of.pairs.get(name, {}).get(address, PairCounters()) for name in names]
            requests = sum(p.requests for p in pairs)
            failures = sum(p.failures for p in pairs)
            stray = failures + max(abs(requests - failures - sum(counters.completions_at)) - 2, 0)
            if stray > MOST_STRAY_RATIO * requests:
                excess.skip()
                continue
            excess.add(
                of.seconds,
                k,
                counters.seconds_at,
                [p.requests - p.failures for p in pairs],
                [p.unqueued for p in pairs],
                [p.unqueued_seconds for p in pairs],
            )
            found = excess.discipline()
            kept = self._kept.get(address)
            # Sure once is sure until the opposite is: loads come and go, disciplines hardly.
            if found and (found.sure or not (kept and kept.sure)):
                self._kept[address] = found

    def found(self) -> dict[str, Discipline]:
        """By address what is known; what was sure stays until its slots are in doubt, or the
        opposite is sure."""
        return dict(self._kept)
