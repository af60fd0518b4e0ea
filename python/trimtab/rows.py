"""The quick way from a report with a message a peer (`UpstreamStats.peers`) to columns.

The arrays of all peers are converted at once. What is out of the ordinary (an array missing or not
packed, a number beyond 2^53, a bound broken) gives None, and the caller decodes with every check
and message. Most of the time goes into reading one field of one peer after another; reports by
column (`packed`) spare that.
"""

from itertools import chain
from operator import attrgetter
from typing import Any, Final

import numpy as np

from trimtab import varints
from trimtab.columns import BUCKETS, REAL, STATUS_CLASSES, WHOLE, Columns, Layout
from trimtab.model import CONCURRENCY_LEVELS
from trimtab.wire import Lay, in_bounds, layout_of, texts_in_bounds

__all__ = ["columns"]


def _single(fields: Any, server: bool) -> tuple[str, ...]:
    return tuple(f.name for f in fields if f.server == server and f.width == 1)


# Single numbers of a pair and of a server, whole and not, each in the order of `columns`.
_COUNTS: Final = _single(WHOLE, False)
_SUMS: Final = _single(REAL, False)
_LEVEL: Final = _single(WHOLE, True)
_GAUGES: Final = _single(REAL, True)
_of_pair: Final = attrgetter(*_COUNTS)
_sums: Final = attrgetter(*_SUMS)
_of_server: Final = attrgetter(*_LEVEL)
_gauges: Final = attrgetter(*_GAUGES)
_responses: Final = attrgetter("responses")
_buckets: Final = attrgetter("response_time_buckets")
_completions: Final = attrgetter("completions_at")
_seconds: Final = attrgetter("seconds_at")
_address: Final = attrgetter("address")
_ejection: Final = attrgetter("ejection")


def columns(message: Any, lay: Lay, layouts: dict[Any, Any]) -> Columns | None:
    """The columns of a `wire.Report`; None for the careful way. `layouts` keeps what `lay` made."""
    upstreams = list(message.upstreams)
    peers = [list(u.peers) for u in upstreams]
    servers = list(message.addresses)
    pairs = list(chain.from_iterable(peers))
    if not pairs or not servers or any(u.HasField("peer_columns") for u in upstreams):
        return None
    names = tuple(
        (u.upstream, tuple(map(_address, group))) for u, group in zip(upstreams, peers, strict=True)
    )
    layout = layout_of(names, tuple(map(_address, servers)), lay, layouts)
    return None if layout is None else _columns(layout, pairs, servers)


def _columns(layout: Layout, pairs: list[Any], servers: list[Any]) -> Columns | None:
    n, m = len(pairs), len(servers)
    responses, buckets = list(map(_responses, pairs)), list(map(_buckets, pairs))
    completions, seconds = list(map(_completions, servers)), list(map(_seconds, servers))
    # Each array once and whole.
    if any(len(array) != 1 for array in chain(responses, buckets, completions, seconds)):
        return None
    levels = list(chain.from_iterable(seconds))
    if any(len(level) != 8 * CONCURRENCY_LEVELS for level in levels):
        return None
    numbers = varints.decode(
        list(chain.from_iterable(chain(responses, buckets, completions))),
        [STATUS_CLASSES] * n + [BUCKETS] * n + [CONCURRENCY_LEVELS] * m,
    )
    if numbers is None:
        return None
    try:
        counts = _by_field(map(_of_pair, pairs), np.int64, n, len(_COUNTS))
        level = _by_field(map(_of_server, servers), np.int64, m, len(_LEVEL))
    except OverflowError:
        return None
    sums = _by_field(map(_sums, pairs), np.float64, n, len(_SUMS))
    gauges = _by_field(map(_gauges, servers), np.float64, m, len(_GAUGES))
    wide = np.split(numbers, np.cumsum((STATUS_CLASSES * n, BUCKETS * n)))
    widths = ((n, STATUS_CLASSES), (n, BUCKETS), (m, CONCURRENCY_LEVELS))
    turned = [part.reshape(shape).T.ravel() for part, shape in zip(wide, widths, strict=True)]
    seconds_at = np.frombuffer(b"".join(levels), "<f8").reshape(m, CONCURRENCY_LEVELS).T.ravel()
    # As `columns.WHOLE` and `columns.REAL` have it.
    whole = np.concatenate((counts[:n], level, counts[n:], *turned))
    real = np.concatenate((sums, seconds_at, gauges))
    ejection = tuple(map(_ejection, servers))
    if not (in_bounds(whole, real, n, m) and texts_in_bounds(ejection)):
        return None
    return Columns(layout, whole, real, ejection).kept(n, m)


def _by_field(entries: Any, kind: Any, rows: int, fields: int) -> Any:
    """The values of `entries` (a tuple of so many each), a field after the other."""
    values = np.fromiter(chain.from_iterable(entries), kind, rows * fields)
    return values.reshape(rows, fields).T.ravel()
