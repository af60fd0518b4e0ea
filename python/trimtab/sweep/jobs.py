"""Jobs that depend on nothing but their argument, and the sweep that does them in this process.

A sweep maps a function over jobs and gives the results in the order of the jobs, so that what is
made of them is the same wherever they ran. `processes` does it on the cores of this machine,
`cluster` on the machines of a Ray cluster. The function must be one of a module, its arguments and
results such as can be pickled.
"""

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

from trimtab.errors import TrimtabError

__all__ = ["Heard", "Here", "Job", "JobError", "Sweep", "Told", "attempt", "quiet", "usable_cores"]

A = TypeVar("A")
R = TypeVar("R")

# What a job calls: seconds of its own that are done, and how it goes.
Told = Callable[[float, str], None]

# Who listens to a sweep: the label of the first job that is not done, the seconds that are done of
# all jobs, how that job goes.
Heard = Callable[[str, float, str], None]


class JobError(TrimtabError):
    """A job failed in a way that nobody foresaw; the message ends with its traceback."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[A]):
    """One call: what messages call it, how many (simulated) seconds it counts for, its argument."""

    label: str
    seconds: float
    argument: A


def quiet(_label: str, _seconds: float, _note: str) -> None:
    """Nobody listens."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0))


class Sweep(Protocol):
    """Does jobs; use as a context manager, which leaves nothing running.

    `parallel` is how many jobs it may do at once.
    """

    parallel: int

    def map(
        self, function: Callable[[A, Told], R], jobs: Sequence[Job[A]], heard: Heard = quiet
    ) -> Iterator[R]:
        """The results in the order of the jobs, each as soon as those before it are there.

        A TrimtabError of a job is raised again, with the job's label; any other exception is a
        JobError. Jobs that were not begun are then left.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None: ...


def attempt(function: Callable[[A, Told], R], job: Job[A], told: Told) -> R:
    """Do one job. Raises as said in `Sweep.map`."""
    try:
        return function(job.argument, told)
    except TrimtabError as error:
        error.args = (f"{job.label}: {error}",)
        raise
    except Exception as error:
        lines = "".join(traceback.format_exception(error)).rstrip().replace("\n", "\n    ")
        raise JobError(
            f"{job.label} failed: {type(error).__name__}: {error}\n    {lines}"
        ) from None


class Here:
    """Does them one after the other in this process."""

    parallel = 1

    def map(
        self, function: Callable[[A, Told], R], jobs: Sequence[Job[A]], heard: Heard = quiet
    ) -> Iterator[R]:
        """See `Sweep`."""
        done = 0.0
        for job in jobs:

            def told(seconds: float, note: str, of: Job[A] = job, before: float = done) -> None:
                heard(of.label, before + seconds, note)

            yield attempt(function, job, told)
            done += job.seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        pass
