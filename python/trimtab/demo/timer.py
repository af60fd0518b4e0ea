"""A timer with nanosecond resolution for an asyncio loop.

asyncio and uvloop round their timers to milliseconds, which is a tenth of the service times that
are emulated here. Linux's timerfd does not, and it is a file that a loop can watch. Python has it
from 3.13 on; until then it is called through ctypes.
"""

import asyncio
import ctypes
import math
import os
from collections.abc import Callable
from typing import Final

__all__ = ["Timer"]

CLOCK_MONOTONIC: Final = 1  # the clock of time.monotonic()
TFD_TIMER_ABSTIME: Final = 1


class _Itimerspec(ctypes.Structure):
    _fields_ = (
        ("interval_seconds", ctypes.c_long),
        ("interval_nanoseconds", ctypes.c_long),
        ("seconds", ctypes.c_long),
        ("nanoseconds", ctypes.c_long),
    )


_libc: Final = ctypes.CDLL(None, use_errno=True)


class Timer:
    """Calls `callback` on the loop at the last time that was set. One shot."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._spec = _Itimerspec()
        self._fd = int(_libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC))
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        loop.add_reader(self._fd, self._expired)

    def set(self, at_seconds: float) -> None:
        """Fire at this reading of time.monotonic() instead of before; inf: never."""
        if math.isinf(at_seconds):
            seconds, nanoseconds = 0, 0  # disarms
        else:
            # A time of zero would disarm; one in the past fires at once.
            seconds, nanoseconds = divmod(max(1, int(at_seconds * 1e9)), 1_000_000_000)
        self._spec.seconds, self._spec.nanoseconds = seconds, nanoseconds
        if _libc.timerfd_settime(self._fd, TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None) < 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def _expired(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # set anew since it fired
        self._callback()

    def close(self) -> None:
        """Stop and free the timer."""
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
