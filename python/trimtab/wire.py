"""A report as protobuf sees it when its arrays are bytes, and what both quick ways need of it.

A packed array of numbers looks on the wire as a field of bytes does. So a report is parsed with
the contract's own descriptor, its arrays declared as bytes, and all of them are converted at once:
those of every peer (`rows`), or those that hold a column of all peers already (`packed`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory

from trimtab.bounds import MessageError, check_text
from trimtab.columns import REAL, Layout, places
from trimtab.v1 import policy_pb2

__all__ = [
    "LEAST_BYTES",
    "Lay",
    "Names",
    "Report",
    "in_bounds",
    "known_rows",
    "layout_of",
    "remember",
    "texts_in_bounds",
]

# Every count up to here is a float64 exactly.
MOST_COUNT: Final = 2.0**53

# Below this the careful way costs no more: a report of two or three peers.
LEAST_BYTES: Final = 1024

# Balancers of one configuration have one layout; during a roll-out there are two.
MOST_LAYOUTS: Final = 64

# Upstreams with the addresses of their peers.
Names = tuple[tuple[str, tuple[str, ...]], ...]

# What makes a layout of upstreams and servers, with every check; None when one is broken.
Lay = Callable[[Names, tuple[str, ...]], Layout | None]


def _report_class() -> Any:
    """ReportStatsRequest with its packed arrays as bytes, and in columns the names too."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto()
    policy_pb2.DESCRIPTOR.CopyToProto(file)
    own = file.package + ".wire"
    arrays = (kinds.TYPE_UINT64, kinds.TYPE_DOUBLE, kinds.TYPE_BOOL)
    for message in file.message_type:
        for each in message.field:
            if each.type_name.endswith(".AddressList"):
                # Which addresses these are is looked up by their bytes.
                each.label, each.type = kinds.LABEL_REPEATED, kinds.TYPE_BYTES
                each.ClearField("type_name")
            elif each.type_name:
                each.type_name = each.type_name.replace(f".{file.package}.", f".{own}.")
            elif each.label == kinds.LABEL_REPEATED and each.type in arrays:
                # Repeated still: an array that comes in pieces has several.
                each.type = kinds.TYPE_BYTES
    file.name, file.package = "trimtab/wire.proto", own
    del file.service[:]
    duration = descriptor_pb2.FileDescriptorProto()
    duration_pb2.DESCRIPTOR.CopyToProto(duration)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(duration)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{own}.ReportStatsRequest"))


Report: Final = _report_class()


def remember(layouts: dict[Any, Any], key: Any, value: Any) -> None:
    """Keep a layout, or what stands for one, by the names that it is of."""
    if len(layouts) >= MOST_LAYOUTS:
        layouts.clear()
    layouts[key] = value


def layout_of(names: Names, servers: tuple[str, ...], lay: Lay, layouts: dict[Any, Any]) -> Any:
    """The layout of these names; reports of either form share it. None when `lay` gives none."""
    layout = layouts.get((names, servers))
    if layout is None:
        layout = lay(names, servers)
        if layout is not None:
            remember(layouts, (names, servers), layout)
    return layout


def in_bounds(whole: Any, real: Any, pairs: int, servers: int) -> bool:
    """Whether the arrays of `columns` hold what the contract allows, and what a float64 holds."""
    ratios = places(REAL, pairs, servers)["error_ratio"]
    # NaN is not 0 or more.
    return bool(
        whole.max() < MOST_COUNT
        and real.min() >= 0.0
        and real.max() < np.inf
        and real[ratios].max() <= 1.0
    )


def texts_in_bounds(texts: Sequence[str]) -> bool:
    """Each empty, or as `check_text` wants it."""
    try:
        for text in set(texts) - {""}:
            check_text(text, "ejection")
    except MessageError:
        return False
    return True


def known_rows(
    names: Names,
    servers: tuple[str, ...],
    known: Mapping[str, frozenset[str]],
) -> Layout:
    """The layout of names in bounds, without what is not `known` (upstream -> addresses)."""
    unknown: dict[str, None] = {}
    kept: list[int] = []
    upstreams = []
    at = 0
    for name, peers in names:
        expected = known.get(name)
        if expected is None:
            unknown[name] = None
        else:
            unknown |= {a: None for a in peers if a not in expected}
            kept += [at + n for n, a in enumerate(peers) if a in expected]
            upstreams.append((name, tuple(a for a in peers if a in expected)))
        at += len(peers)
    every = frozenset[str]().union(*known.values())
    unknown |= {a: None for a in servers if a not in every}
    kept_servers = [n for n, a in enumerate(servers) if a in every]
    return Layout(
        upstreams=tuple(upstreams),
        addresses=tuple(a for a in servers if a in every),
        keep_pairs=None if len(kept) == at else np.array(kept, np.intp),
        keep_addresses=(
            None if len(kept_servers) == len(servers) else np.array(kept_servers, np.intp)
        ),
        unknown=tuple(unknown),
    )
