"""The data model to bytes of the gRPC responses.

Weights are joined of pieces serialised once a generation, so that a thousand balancers that ask
cost little.
"""

from collections.abc import Sequence
from typing import Final

from google.protobuf.duration_pb2 import Duration

from trimtab.messages import Query
from trimtab.model import UpstreamWeights, Weights
from trimtab.v1 import policy_pb2

__all__ = ["Answers", "encode_report_answer"]

# A response names this many unknown names: enough to see what is wrong.
MAX_UNKNOWN: Final = 16


def encode_report_answer(
    accepted: bool, unknown: Sequence[str], weights: bytes | None = None
) -> bytes:
    """A ReportStatsResponse; of the unknown names the first 16; with a serialised
    GetWeightsResponse, if there is one."""
    answer = policy_pb2.ReportStatsResponse(accepted=accepted, unknown=unknown[:MAX_UNKNOWN])
    own: bytes = answer.SerializeToString()
    return own if weights is None else own + _WEIGHTS_TAG + _length(len(weights)) + weights


# A field with a length is tag, length and bytes.
_WEIGHTS_TAG: Final = bytes([policy_pb2.ReportStatsResponse.WEIGHTS_FIELD_NUMBER << 3 | 2])


def _length(size: int) -> bytes:
    out = bytearray()
    while size > 127:
        out.append(size & 127 | 128)
        size >>= 7
    return bytes([*out, size])


class Answers:
    """The GetWeightsResponses of one generation of weights.

    In protobuf the concatenation of serialised messages is the serialisation of their merge, so
    an answer is the header followed by a piece for each upstream asked for, and a piece is made
    once. Not thread-safe; it lives in the server's event loop.
    """

    def __init__(
        self, weights: Weights, time_to_live_seconds: float, refresh_interval_seconds: float
    ) -> None:
        self.weights = weights
        header = policy_pb2.GetWeightsResponse(
            epoch=weights.epoch,
            generation=weights.generation,
            time_to_live=_duration(time_to_live_seconds),
            refresh_interval=_duration(refresh_interval_seconds),
            reads_columns=True,
        )
        self._header: bytes = header.SerializeToString()
        header.unchanged = True
        self._unchanged: bytes = header.SerializeToString()
        self._pieces: dict[str, bytes] = {}

    def answer(self, query: Query, time_to_live_seconds: float | None = None) -> bytes:
        """The serialised response to `query`; with that time to live instead of the usual one.
        Raises KeyError with a name that is not known."""
        upstreams = self.weights.upstreams
        for name in query.upstreams:
            if name not in upstreams:
                raise KeyError(name)
        if (query.epoch, query.generation) == (self.weights.epoch, self.weights.generation):
            return self._head(True, time_to_live_seconds)
        pieces = [self._piece(name) for name in query.upstreams or upstreams]
        return b"".join([self._head(False, time_to_live_seconds), *pieces])

    def _head(self, unchanged: bool, time_to_live_seconds: float | None) -> bytes:
        if time_to_live_seconds is None:
            return self._unchanged if unchanged else self._header
        header = policy_pb2.GetWeightsResponse.FromString(self._header)
        header.time_to_live.CopyFrom(_duration(time_to_live_seconds))
        header.unchanged = unchanged
        return bytes(header.SerializeToString())

    def _piece(self, name: str) -> bytes:
        piece = self._pieces.get(name)
        if piece is None:
            upstream = _encode_upstream(name, self.weights.upstreams[name])
            whole = policy_pb2.GetWeightsResponse(upstreams=[upstream])
            piece = self._pieces[name] = whole.SerializeToString()
        return piece


def _encode_upstream(name: str, weights: UpstreamWeights) -> policy_pb2.UpstreamWeights:
    message = policy_pb2.UpstreamWeights(upstream=name)
    if weights.deadline_seconds is not None:
        message.deadline.CopyFrom(_duration(weights.deadline_seconds))
    if weights.service_time_seconds is not None:
        message.service_time.CopyFrom(_duration(weights.service_time_seconds))
    for address, peer in weights.peers.items():
        message.peers.add(
            address=address,
            weight=peer.weight,
            affinity=peer.affinity,
            rate=peer.rate,
            slots=peer.slots or 0.0,
            drain=peer.drain,
            sharing=peer.sharing,
        )
    return message


def _duration(seconds: float) -> Duration:
    whole, nanos = divmod(round(seconds * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=nanos)
