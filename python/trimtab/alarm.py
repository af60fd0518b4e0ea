"""A wake-up at an absolute time that an event loop can wait for with less than 0.1 ms of error.

Timers of asyncio and uvloop are rounded to milliseconds: half the lag that the load generator is
allowed, and a tenth of the service times that are emulated. On Linux a timerfd wakes the loop
instead; elsewhere the loop's own timer is used.
"""

import asyncio
import ctypes
import math
import os
import sys
from collections.abc import Callable

__all__ = ["Alarm", "open_alarm"]


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Itimerspec(ctypes.Structure):
    _fields_ = (("interval", _Timespec), ("value", _Timespec))


class Alarm:
    """Calls back once for each `set`, at that `time.monotonic()` or as soon after as possible."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def set(self, at_seconds: float) -> None:
        """Ring at this monotonic time, instead of at any set before; at inf: never."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if math.isinf(at_seconds):
            return
        # time.monotonic is the clock of asyncio's loops, and of uvloop's to a millisecond.
        self._handle = self._loop.call_at(at_seconds, self._callback)

    def close(self) -> None:
        """Do not ring any more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class _Timerfd(Alarm):
    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        super().__init__(loop, callback)
        self._libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_NONBLOCK | os.O_CLOEXEC  # TFD_NONBLOCK and TFD_CLOEXEC are these
        self._fd = self._libc.timerfd_create(1, flags)  # 1 is CLOCK_MONOTONIC
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = _Itimerspec()
        self._pointer = ctypes.byref(self._spec)
        loop.add_reader(self._fd, self._ring)

    def set(self, at_seconds: float) -> None:
        """Ring at this monotonic time, instead of at any set before; at inf: never."""
        value = self._spec.value
        if math.isinf(at_seconds):
            value.seconds = value.nanoseconds = 0  # disarms
        else:
            value.seconds = whole = int(at_seconds)
            value.nanoseconds = max(1, int((at_seconds - whole) * 1e9))
        self._libc.timerfd_settime(self._fd, 1, self._pointer, None)  # 1 is TFD_TIMER_ABSTIME

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # set anew after it had become readable
            return
        self._callback()

    def close(self) -> None:
        """Do not ring any more."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def open_alarm(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> Alarm:
    """The most exact alarm that this system has. Close it."""
    if sys.platform == "linux":
        try:
            return _Timerfd(loop, callback)
        except (OSError, AttributeError):  # no descriptor left, or a libc without timerfd
            pass
    return Alarm(loop, callback)
