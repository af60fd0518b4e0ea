"""How many parts a large report has, from the wire format and before it is parsed."""

from typing import Final

from trimtab.bounds import MessageError, wire_fields
from trimtab.config import MAX_PAIRS
from trimtab.v1 import policy_pb2

__all__ = ["UNCOUNTED_BYTES", "count_parts"]

# A report up to this size (four times that of a hundred peers) is parsed as it is. An empty
# sub-message is two bytes on the wire and about 170 in memory, so a larger one (8 MiB would become
# 700 MB) has its parts counted first.
UNCOUNTED_BYTES: Final = 256 * 1024

# Twice the fields that a report in bounds can have outside its pairs: counting stops there, so a
# message of a million tiny fields costs milliseconds.
MAX_FIELDS: Final = 4 * MAX_PAIRS


def count_parts(raw: bytes) -> None:
    """Refuse a large report with too many parts. Raises MessageError."""
    kind = policy_pb2.ReportStatsRequest
    budget = [MAX_FIELDS]
    pairs = addresses = 0
    for field, start, end in wire_fields(raw, 0, len(raw), budget):
        if field == kind.UPSTREAMS_FIELD_NUMBER:
            for inner, first, last in wire_fields(raw, start, end, budget):
                if inner == policy_pb2.UpstreamStats.PEERS_FIELD_NUMBER:
                    pairs += 1
                elif inner == policy_pb2.UpstreamStats.PEER_COLUMNS_FIELD_NUMBER:
                    pairs += _count_names(raw, first, last, budget)
        elif field == kind.ADDRESSES_FIELD_NUMBER:
            addresses += 1
        elif field == kind.ADDRESS_COLUMNS_FIELD_NUMBER:
            addresses += _count_names(raw, start, end, budget)
    if pairs > MAX_PAIRS or addresses > MAX_PAIRS:
        raise MessageError(
            f"upstreams have {pairs} peers in all, and addresses {addresses} entries; at most "
            f"{MAX_PAIRS} are allowed of each"
        )


def _count_names(raw: bytes, start: int, end: int, budget: list[int]) -> int:
    """How many addresses columns have; other texts in them only take of the budget."""
    # The same number in both kinds of columns.
    names = policy_pb2.PeerColumns.ADDRESSES_FIELD_NUMBER
    return sum(
        sum(1 for _ in wire_fields(raw, first, last, budget))
        for field, first, last in wire_fields(raw, start, end, budget)
        if field == names
    )
