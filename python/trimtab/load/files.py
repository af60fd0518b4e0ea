"""The files that a run leaves: JSON result, per-request records (.npz), HdrHistogram log.

`docs/load.md` documents the formats. What is printed is in `report`.
"""

import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from hdrh.histogram import HdrHistogram

from trimtab import __version__
from trimtab.errors import ConfigError, TrimtabError
from trimtab.load.records import FIELDS, Ending, Records, Summary
from trimtab.load.result import MAX_RATE_ERROR, Result

__all__ = [
    "check_writable",
    "hdr_lines",
    "histogram",
    "plain",
    "write_hdr",
    "write_json",
    "write_npz",
]

FORMAT: Final = 1
# Microseconds, 1 µs to an hour, three significant digits: as wrk2 and the HdrHistogram tools.
_LOWEST, _HIGHEST, _DIGITS = 1, 3_600_000_000, 3
# 2048 sub-buckets are what three digits need; values above are kept to 11 bits.
_BITS: Final = 11


def check_writable(path: Path) -> None:
    """Raise ConfigError when a file at `path` could not be written, before anything starts."""
    try:
        if path.exists() and not path.is_file():
            # Opening a pipe would wait for its reader.
            if path.is_dir() or not os.access(path, os.W_OK):
                raise ConfigError(f"cannot write {path}: it is a directory, or not writable")
            return
        fresh = not path.exists()
        with open(path, "ab"):
            pass
        if fresh:
            path.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror or error}") from None


def _write(path: Path, fill: Callable[[IO[bytes]], object]) -> None:
    """Replace the file by what `fill` writes, at once: no reader meets half of it."""
    try:
        if path.exists() and not path.is_file():
            with open(path, "wb") as file:  # a pipe or a device cannot be replaced
                fill(file)
            return
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                fill(file)
            os.chmod(name, 0o666 & ~_umask())  # mkstemp's 0600 is for secrets
            os.replace(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TrimtabError(
            f"cannot write {path}: {error.strerror or error}; the run itself is complete"
        ) from None


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _finite(value: Any) -> Any:
    """The same with null for NaN, which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _summary(summary: Summary) -> dict[str, Any]:
    out = asdict(summary)
    for name in ("response", "success", "service", "first_byte"):
        out[f"{name}_seconds"] = out.pop(name)
    return out


def plain(result: Result, *, deadlines: Mapping[str, float | None] | None = None) -> dict[str, Any]:
    """The result as JSON-able data; the schema is in docs/load.md."""
    classes = {}
    for load in result.schedule.classes:
        entry: dict[str, Any] = {"law": load.law, "rate_per_second": load.rate_per_second}
        entry.update(_summary(result.summary(load.name, deadlines=deadlines)))
        classes[load.name] = entry
    data = {
        "format": FORMAT,
        "trimtab": __version__,
        "url": result.url,
        "started_at": datetime.fromtimestamp(result.started_at, UTC).isoformat(),
        "seed": result.schedule.seed,
        "seconds": result.seconds,
        "processes": result.processes,
        "valid": result.valid,
        "invalid_because": list(result.invalid_because),
        "interrupted": result.interrupted,
        "not_sent": result.not_sent,
        "bounds": {
            "send_lag_p99_seconds": result.max_lag_seconds,
            "rate_error_ratio": MAX_RATE_ERROR,
        },
        "offered_per_second": result.offered_per_second,
        "achieved_per_second": result.achieved_per_second,
        "send_lag_seconds": asdict(result.lag),
        "total": _summary(result.summary(deadlines=deadlines)),
        "classes": classes,
    }
    finite: dict[str, Any] = _finite(data)
    return finite


def write_json(result: Result, path: Path) -> None:
    """Write the JSON result."""
    text = json.dumps(plain(result), indent=1, allow_nan=False) + "\n"
    _write(path, lambda file: file.write(text.encode()))


def write_npz(result: Result, path: Path) -> None:
    """Write every record: one array a column, to be read with numpy.load, without pickles."""
    records = result.records
    arrays: dict[str, Any] = {
        name: getattr(records, name)
        for name in ("class_index", "intended", "work_seconds", *FIELDS)
    }
    arrays["classes"] = np.array(records.classes, dtype=np.str_)
    arrays["peers"] = np.array(records.peers, dtype=np.str_)
    arrays["endings"] = np.array([e.name.lower() for e in Ending], dtype=np.str_)
    arrays["started_at"] = np.array(result.started_at)
    _write(path, lambda file: np.savez_compressed(file, **arrays))


def histogram(seconds: np.ndarray) -> HdrHistogram:
    """An HdrHistogram, in microseconds, of times of shape (n,); NaN left out."""
    result = HdrHistogram(_LOWEST, _HIGHEST, _DIGITS)
    known = seconds[~np.isnan(seconds)]
    micros = np.clip(np.rint(known * 1e6), _LOWEST, _HIGHEST).astype(np.int64)
    # Recording goes value by value in Python: first join what shares a bucket anyway.
    shift = np.maximum(np.frexp(micros.astype(float))[1] - _BITS, 0)
    for value, count in zip(
        *np.unique((micros >> shift) << shift, return_counts=True), strict=True
    ):
        result.record_value(int(value), int(count))
    return result


def hdr_lines(records: Records, seconds: float, started_at: float) -> Iterator[str]:
    """An HdrHistogram log (version 1.2): response times by class and second of intended time."""
    begin = datetime.fromtimestamp(started_at, UTC).isoformat()
    yield "#[Histogram log format version 1.2]"
    yield f"#[StartTime: {started_at:.3f} (seconds since epoch), {begin}]"
    yield '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"'
    ended = records.where(~np.isnan(records.end) & ~records.cut)
    second = ended.intended.astype(np.int64)
    order = np.lexsort((ended.class_index, second))
    keys = second[order] * len(records.classes) + ended.class_index[order]
    response = ended.response_seconds[order]
    edges = np.flatnonzero(np.diff(keys, prepend=-1, append=-1))
    for first, last in itertools.pairwise(edges):
        at, number = divmod(int(keys[first]), len(records.classes))
        h = histogram(response[first:last])
        length = min(1.0, seconds - at)
        yield (
            f"Tag={records.classes[number]},{at:.3f},{length:.3f},"
            f"{h.get_max_value() / 1e6:.6f},{h.encode().decode()}"
        )


def write_hdr(result: Result, path: Path) -> None:
    """Write the HdrHistogram log; the unit of the values is the microsecond."""
    lines = hdr_lines(result.records, result.seconds, result.started_at)
    _write(path, lambda file: file.writelines(f"{line}\n".encode() for line in lines))
