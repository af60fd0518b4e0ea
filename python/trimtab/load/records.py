"""What became of each request, and what that adds up to: percentiles, tardiness, validity.

Pure numpy over arrays that `client` has filled. Printing and files are in `report`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from trimtab.model import FAILED_TARDINESS

__all__ = [
    "FIELDS",
    "Ending",
    "Records",
    "Spread",
    "Summary",
    "merge",
    "spread",
    "summarise",
    "tardiness",
]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Ending(IntEnum):
    """How a request ended. All but OK and CUT are failures; none is ever left out."""

    OK = 0  # a whole 2xx answer
    STATUS = 1  # a whole answer of another status
    REFUSED = 2  # connection refused
    RESET = 3  # closed or reset before the first byte of the answer
    TIMEOUT = 4  # no whole answer within the timeout, counted from the send
    SHORT = 5  # closed or reset inside the answer
    MALFORMED = 6  # not HTTP
    UNREACHABLE = 7  # no connection for another reason
    LOCAL = 8  # the generator ran out of descriptors, ports or memory: makes the run invalid
    CUT = 9  # still in flight when the run was interrupted


# Columns of a record and their types; times are seconds from the start of the run, NaN for never.
FIELDS: Final[Mapping[str, type[np.generic]]] = {
    "send": np.float64,
    "first_byte": np.float64,
    "end": np.float64,
    "status": np.uint16,  # 0 when no answer came
    "ending": np.uint8,
    "peer": np.int16,  # index into `peers`; -1 when the server did not say
    "reused": np.bool_,  # sent on a connection that had served another request
    "received_bytes": np.uint32,  # head and body of the answer
}


# Columns that come from the schedule.
_GIVEN: Final = ("class_index", "intended", "work_seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """One row a request, in the order of the schedule: every array has shape (n,).

    Seconds count from the start of the run. `peers` are the names that `peer` points to,
    `classes` those that `class_index` points to.
    """

    classes: tuple[str, ...]
    peers: tuple[str, ...]
    class_index: NDArray[np.uint16]
    intended: Floats
    work_seconds: Floats  # NaN where no work was drawn
    send: Floats
    first_byte: Floats
    end: Floats
    status: NDArray[np.uint16]
    ending: NDArray[np.uint8]
    peer: NDArray[np.int16]
    reused: Bools
    received_bytes: NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.intended)

    @property
    def response_seconds(self) -> Floats:
        """From the intended time to the end, whatever the end was: (n,)."""
        return self.end - self.intended

    @property
    def service_seconds(self) -> Floats:
        """From the send to the end; opening a connection, where one was needed, included: (n,)."""
        return self.end - self.send

    @property
    def send_lag_seconds(self) -> Floats:
        """How late the generator itself was: (n,)."""
        return self.send - self.intended

    @property
    def failed(self) -> Bools:
        """Requests that did not end in a whole 2xx answer; those that were cut are not failed."""
        whole_or_cut = np.isin(self.ending, (Ending.OK, Ending.CUT))
        return np.logical_not(whole_or_cut)

    @property
    def cut(self) -> Bools:
        """Requests whose end the interruption of the run hid."""
        return np.equal(self.ending, Ending.CUT)

    def of(self, name: str) -> "Records":
        """The records of one class."""
        return self.where(self.class_index == self.classes.index(name))

    def where(self, chosen: Bools) -> "Records":
        """The records that the mask of shape (n,) chooses."""
        columns = {f: getattr(self, f)[chosen] for f in (*_GIVEN, *FIELDS)}
        return Records(classes=self.classes, peers=self.peers, **columns)


def merge(parts: Sequence[tuple[NDArray[np.intp], Records]], count: int) -> Records:
    """One set of `count` records from the parts that several processes sent.

    Each part comes with the places of its rows; together they are 0 … count-1, each once.
    """
    peers: dict[str, int] = {}
    first = parts[0][1]
    columns = {f: np.zeros(count, dtype=getattr(first, f).dtype) for f in (*_GIVEN, *FIELDS)}
    for places, part in parts:
        for name, column in columns.items():
            column[places] = getattr(part, name)
        renamed = [peers.setdefault(p, len(peers)) for p in part.peers]
        columns["peer"][places] = np.array([*renamed, -1], dtype=np.int16)[part.peer]
    return Records(classes=first.classes, peers=tuple(peers), **columns)


def tardiness(response_seconds: Floats, failed: Bools, deadline_seconds: float) -> Floats:
    """Relative tardiness max(0, (t - d)/d) of each request; a failed one has at least 9: (n,)."""
    late = np.maximum(0.0, (response_seconds - deadline_seconds) / deadline_seconds)
    return np.where(failed, np.maximum(late, FAILED_TARDINESS), late)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Location and tail of some times, in seconds; NaN when there are none.

    A percentile is exact: the smallest time that at least that share of the times do not exceed.
    """

    count: int
    mean: float
    sd: float
    p50: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


def spread(seconds: Floats) -> Spread:
    """The spread of times of shape (n,), NaN left out."""
    known = seconds[~np.isnan(seconds)]
    if not known.size:
        nan = math.nan
        return Spread(
            count=0, mean=nan, sd=nan, p50=nan, p90=nan, p95=nan, p99=nan, p999=nan, max=nan
        )
    shares = (0.5, 0.9, 0.95, 0.99, 0.999, 1.0)
    p50, p90, p95, p99, p999, top = (
        float(v) for v in np.quantile(known, shares, method="inverted_cdf")
    )
    return Spread(
        count=int(known.size),
        mean=float(known.mean()),
        sd=float(known.std()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p999=p999,
        max=top,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What the records of one class, or of all, add up to.

    `response` covers every request that ended, failures with the time at which they ended;
    `success` only whole 2xx answers. `art` and what follows it are None without a deadline; for
    all classes together each request is held to its own class's deadline, and those of classes
    without one are left out of them.
    """

    requests: int
    succeeded: int
    failed: int
    failures: Mapping[str, int]
    statuses: Mapping[int, int]
    peers: Mapping[str, int]
    offered_per_second: float
    throughput_per_second: float
    response: Spread
    success: Spread
    service: Spread
    first_byte: Spread
    deadline_seconds: float | None
    art: float | None
    art_per_1000: float | None
    tardy_ratio: float | None
    goodput_per_second: float | None


def summarise(
    records: Records, *, seconds: float, deadlines: Mapping[str, float | None]
) -> Summary:
    """The sums over `records`, which were intended within `seconds`."""
    per_class = np.array([deadlines.get(c) or math.nan for c in records.classes])
    deadline = per_class[records.class_index]
    counted = ~records.cut
    judged = counted & ~np.isnan(deadline)
    failed = records.failed
    response = records.response_seconds
    art = per_1000 = tardy = goodput = None
    if judged.any():
        late = np.maximum(0.0, response[judged] / deadline[judged] - 1)
        late = np.where(failed[judged], np.maximum(late, FAILED_TARDINESS), late)
        art = float(late.sum())
        per_1000 = 1000 * art / int(judged.sum())
        tardy = float((late > 0).mean())
        goodput = float((late == 0).sum()) / seconds
    kinds = np.bincount(records.ending, minlength=len(Ending))
    statuses, status_counts = np.unique(records.status[records.status > 0], return_counts=True)
    by_peer = np.bincount(records.peer[records.peer >= 0], minlength=len(records.peers))
    present = set(np.unique(records.class_index).tolist())
    distinct = {deadlines.get(records.classes[i]) for i in present}
    succeeded = records.ending == Ending.OK
    return Summary(
        requests=len(records),
        succeeded=int(succeeded.sum()),
        failed=int(failed.sum()),
        failures={e.name.lower(): int(kinds[e]) for e in Ending if e != Ending.OK and kinds[e]},
        statuses={int(s): int(c) for s, c in zip(statuses, status_counts, strict=True)},
        peers={p: int(c) for p, c in zip(records.peers, by_peer, strict=True) if c},
        offered_per_second=len(records) / seconds,
        throughput_per_second=int(succeeded.sum()) / seconds,
        response=spread(response[counted]),
        success=spread(response[succeeded]),
        service=spread(records.service_seconds[counted]),
        first_byte=spread(records.first_byte[counted] - records.send[counted]),
        deadline_seconds=distinct.pop() if len(distinct) == 1 else None,
        art=art,
        art_per_1000=per_1000,
        tardy_ratio=tardy,
        goodput_per_second=goodput,
    )
