"""The log of the policy server: one line a record on standard error, as text or as JSON.

    2026-01-31T12:00:00.000Z error loop: a step failed …
    {"time": "2026-01-31T12:00:00.000Z", "level": "error", "where": "loop", "message": "…"}

Tracebacks stay in their record's line.
"""

import json
import logging
import sys
import time
from typing import Final

__all__ = ["FORMATS", "to_stderr"]


class _Text(logging.Formatter):
    """For people, and for grep."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(level)s %(where)s: %(message)s")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        record.level = record.levelname.lower()
        record.where = _where(record)
        return super().format(record).replace("\n", " | ")


class _Json(_Text):
    """For log collectors: an object with time, level, where and message; of an exception also its
    type (`error`) and `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one JSON object in one line."""
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "where": _where(record),
            "message": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["error"] = record.exc_info[0].__name__
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


FORMATS: Final = {"text": _Text, "json": _Json}


def _where(record: logging.LogRecord) -> str:
    return record.name.removeprefix("trimtab.")


def to_stderr(level: str, log_format: str = "text") -> None:
    """Log records from `level` ("debug" to "error") on; `log_format` is one of `FORMATS`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(FORMATS[log_format]())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
