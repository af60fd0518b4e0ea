"""Service times of classes from the busy time of a server that queues.

A server that always has work queued shows no request on a free slot, but it does what it can: in a
time in which its slots were busy for B slot-seconds (Σ_n min(n, k)·T_n) and D_j requests of class
j were completed,

    B = Σ_j D_j·s_j + noise

The numbers of requests vary by chance from one such time to the next, so that the mean service
times s_j follow by least squares. The requests that found a free slot are taken out on both sides;
they are known singly, and come in with their own precision. The noise is that of the service times
(as of an exponential with the common mean: two squares a request) and of the requests under way at
both ends. The normal equations

    P = Σ D·Dᵀ/V + diag(n_j/m_j²) + prior,   P·s = Σ D·B/V + n_j/m_j + prior

with m_j the mean of n_j requests that found a free slot; s_j then weighs as much as s_j²/(P⁻¹)_jj
requests. A hundredth of a request's worth of prior, that all classes are alike, keeps P regular.

Right for servers that keep their slots busy while they have work: queues, and processor sharing
with a slot a core. Wrong where failed requests held slots, so such times are left out.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["QueuedWork"]

Floats = NDArray[np.float64]

# Times are put together to this length: long against a service time, so that the requests under
# way at both ends hardly count.
CHUNK_SECONDS: Final = 2.0

# Enough to invert P, and too little to draw a class of long requests to the mean of all.
PRIOR_REQUESTS: Final = 0.01

# A chunk with fewer queued requests has more ends than middle: it goes on.
LEAST_QUEUED: Final = 10


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What came together so far: seconds, busy slot-seconds, requests by class."""

    seconds: float
    busy: float
    done: Floats


class QueuedWork:
    """The queued requests of one server, with forgetting.

    Args:
        classes: how many; they are numbered from 0.
    """

    def __init__(self, classes: int) -> None:
        self._precision = np.zeros((classes, classes))
        self._right = np.zeros(classes)
        self._busy = 0.0
        self._done = np.zeros(classes)
        self._chunk = self._empty()

    def _empty(self) -> _Chunk:
        return _Chunk(0.0, 0.0, np.zeros(len(self._right)))

    def add(self, seconds: float, busy: float, done: Floats, slots: float) -> None:
        """Take a window in: its length, slot-seconds busy with queued requests, and completions of
        such requests by class [classes]."""
        chunk = self._chunk
        self._chunk = _Chunk(
            chunk.seconds + seconds, chunk.busy + max(busy, 0.0), chunk.done + np.maximum(done, 0)
        )
        count = float(self._chunk.done.sum())
        if self._chunk.seconds < CHUNK_SECONDS or count < LEAST_QUEUED:
            return
        chunk, self._chunk = self._chunk, self._empty()
        if not chunk.busy > 0:
            return
        self._busy += chunk.busy
        self._done += chunk.done
        # The mean of all, not the chunk's own: that would give lucky chunks more weight.
        noise = 2 * (count + slots) * (self._busy / self._done.sum()) ** 2
        self._precision += np.outer(chunk.done, chunk.done) / noise
        self._right += chunk.done * chunk.busy / noise

    def skip(self) -> None:
        """Drop what is being put together: something in it was not as it should be."""
        self._chunk = self._empty()

    def rescale(self, factor: float) -> None:
        """All busy time so far was so many times as much: there are more slots than thought."""
        self._precision /= factor**2
        self._right /= factor
        self._busy *= factor
        self.skip()

    def forget(self, keep: float) -> None:
        """Multiply all that is remembered."""
        self._precision *= keep
        self._right *= keep
        self._busy *= keep
        self._done *= keep

    @property
    def empty(self) -> bool:
        """Whether there is less than a chunk's worth of evidence."""
        return float(self._done.sum()) < LEAST_QUEUED

    def stretch(self, means: Floats) -> float:
        """How many times the busy time the completions would have taken at those means [classes],
        with 0 for a class of unknown mean."""
        known = float(self._done[means > 0].sum())
        if not (known > 0 and self._busy > 0):
            return 1.0
        return float(self._done @ means) / known * float(self._done.sum()) / self._busy

    def stretch_error(self, means: Floats, worth: Floats) -> float:
        """Standard deviation of the logarithm of that, where the means are of so many requests of
        exponential service [classes]; infinite without any."""
        shares = self._done * means
        if not shares.sum() > 0:
            return math.inf
        # A class of unknown mean was taken to be as the others, which may be wrong by a factor.
        absent = 1 - float(self._done[means > 0].sum()) / float(self._done.sum())
        of = (shares / shares.sum()) ** 2 / np.maximum(worth, 1e-9)
        variance = float(of[means > 0].sum()) + absent**2 + 2 / float(self._done.sum())
        return math.sqrt(variance)

    def means(self, counts: Floats, means: Floats) -> tuple[Floats, Floats]:
        """Mean service times [classes] and the requests that they are worth, from the queued ones
        and those single ones: `counts` (0: none) of mean `means`. A class without either has 0."""
        if self.empty:
            return np.where(counts > 0, means, 0.0), counts
        own = np.where(counts > 0, counts / np.where(counts > 0, means, 1.0) ** 2, 0.0)
        common = self._busy / float(self._done.sum())
        prior = PRIOR_REQUESTS / common**2
        precision = self._precision + np.diag(own + prior)
        covariance = np.linalg.inv(precision)
        found = covariance @ (self._right + own * means + prior * common)
        worth = np.where(found > 0, found**2 / np.diag(covariance), 0.0)
        # Less than a request is no evidence, nor is the prior.
        seen = (worth >= 1) & ((counts > 0) | (np.diag(self._precision) > 0))
        return np.where(seen, found, 0.0), np.where(seen, worth, 0.0)
