"""Saved data in a checked envelope: bytes that are whole and ours, or an error.

An envelope is one JSON object {"format", "sha256", "body"}, the checksum over the body's canonical
text. What is cut short, changed, of another format or too large is refused. No pickle. Where the
bytes are kept is the store's.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Final

from trimtab.errors import StateError

__all__ = ["MOST_BYTES", "pack", "unpack"]

FORMAT: Final = 1

# A thousand peers and 27 states are about a megabyte; what is larger is not ours.
MOST_BYTES: Final = 64 * 1024 * 1024


def pack(body: Mapping[str, Any], what: str) -> bytes:
    """The envelope of `body`. Raises StateError, which begins with `what`, when it holds what JSON
    cannot (NaN, infinity) or is larger than 64 MiB."""
    try:
        # As it will be read: keys that are no strings become such, and tuples lists.
        body = json.loads(json.dumps(body, allow_nan=False))
        whole = {"format": FORMAT, "sha256": _checksum(body), "body": body}
        raw = json.dumps(whole, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise StateError(f"{what}: not written, the state is not finite: {error}") from None
    if len(raw) > MOST_BYTES:
        raise StateError(f"{what}: not written, {len(raw)} bytes are more than {MOST_BYTES}")
    return raw


def unpack(raw: bytes, what: str) -> dict[str, Any]:
    """The body in an envelope. Raises StateError, which begins with `what`."""
    if len(raw) > MOST_BYTES:
        raise StateError(f"{what}: larger than {MOST_BYTES} bytes")
    try:
        whole = json.loads(raw)
        found, body = whole["format"], whole["body"]
        fits = whole["sha256"] == _checksum(body) and isinstance(body, dict)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise StateError(f"{what}: truncated, or not a state file") from None
    if found != FORMAT:
        raise StateError(f"{what}: has format {found!r}; this version reads {FORMAT}")
    if not fits:
        raise StateError(f"{what}: its checksum does not fit its content")
    return dict(body)


def _checksum(body: Any) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
