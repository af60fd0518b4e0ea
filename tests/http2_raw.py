"""An HTTP/2 client (RFC 9113, without TLS) that sends streams at once, and takes them back."""

import socket
import struct
from types import TracebackType

__all__ = ["Http2"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS = 0, 1, 3, 4
END_STREAM, ACKNOWLEDGED, END_HEADERS = 1, 1, 4
CANCEL = 8
# HPACK (RFC 7541): entries of the static table, and a literal that is not to be remembered.
GET, HTTP, PATH, AUTHORITY, NEW = b"\x82", b"\x86", b"\x04", b"\x01", b"\x00"
STATUS_200 = 0x88


def _text(value: str) -> bytes:
    return bytes([len(value)]) + value.encode()


class Http2:
    """One connection. Each `ask` is a stream; `answers` waits for the end of so many."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 20)
        self._last = -1
        self._socket.sendall(PREFACE + self._frame(SETTINGS, 0, 0, b""))

    def __enter__(self) -> "Http2":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._socket.close()

    @staticmethod
    def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
        return (
            struct.pack(">I", len(payload))[1:]
            + struct.pack(">BBI", kind, flags, stream)
            + (payload)
        )

    def ask(self, path: str, work: float = 0.0) -> int:
        """Send a GET that takes so many seconds of work; its stream."""
        self._last += 2
        block = GET + HTTP + PATH + _text(path) + AUTHORITY + _text("x")
        block += NEW + _text("x-work") + _text(str(work))
        self._socket.sendall(self._frame(HEADERS, END_STREAM | END_HEADERS, self._last, block))
        return self._last

    def reset(self, stream: int) -> None:
        """Take a request back (RST_STREAM)."""
        self._socket.sendall(self._frame(RESET, 0, stream, struct.pack(">I", CANCEL)))

    def _read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = self._socket.recv(count - len(data))
            assert more, "the connection was closed"
            data += more
        return data

    def answers(self, count: int) -> list[int]:
        """The streams of the next `count` answers with status 200, in the order of their ends."""
        ended: list[int] = []
        while len(ended) < count:
            head = self._read(9)
            length = int.from_bytes(head[:3], "big")
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = self._read(length)
            if kind == SETTINGS and not flags & ACKNOWLEDGED:
                self._socket.sendall(self._frame(SETTINGS, ACKNOWLEDGED, 0, b""))
            elif kind == HEADERS:
                assert payload[0] == STATUS_200 or STATUS_200 in payload[:3]
            if kind in (DATA, HEADERS) and flags & END_STREAM:
                ended.append(stream)
        return ended
