"""Sending from several processes: the same schedule, all records, no leftovers."""

import asyncio
import contextlib
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from load_servers import scripted
from trimtab.errors import ConfigError, TrimtabError
from trimtab.load.client import Progress
from trimtab.load.plan import plan, target
from trimtab.load.processes import run_processes
from trimtab.load.records import FIELDS, Ending
from trimtab.load.schedule import ClassLoad, Schedule, build
from trimtab.load.worker import load_plan, save_plan
from trimtab.load.workloads import Request, Work, compose

ANY_LAG = 1e9


def mixed(seconds: float = 0.6) -> Schedule:
    """Posts with work, plain answers and 503s."""
    return build(
        [
            ClassLoad(name="posts", rate_per_second=100, request=compose, work=Work("exp", 0.01)),
            ClassLoad(name="ok", rate_per_second=100, request=Request("/ok"), law="norm"),
            ClassLoad(name="bad", rate_per_second=50, request=Request("/status/503"), law="zipf"),
        ],
        seconds=seconds,
        seed=5,
    )


def workers() -> list[int]:
    """The load generator's processes below this one."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it may be gone by now
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"trimtab.load.worker" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def test_a_plan_survives_the_way_to_another_process(tmp_path: Path) -> None:
    """What a child reads is what the parent wrote: times, work and bytes, without pickles."""
    where = target("http://h:80/")
    whole = plan(mixed(), where)
    save_plan(tmp_path / "job.npz", whole, where, 7.5)
    found, at, timeout = load_plan(tmp_path / "job.npz")
    assert (at.host, at.port, at.authority, timeout) == ("h", 80, "h:80", 7.5)
    assert list(found.payloads) == list(whole.payloads)
    for name in ("times", "payload", "work_seconds"):
        assert np.array_equal(getattr(found, name), getattr(whole, name), equal_nan=True)


def test_any_number_of_processes_sends_the_same() -> None:
    """One or three processes: the same requests with the same work arrive, all recorded once."""

    async def both() -> None:
        schedule = mixed()
        seen = []
        for count in (1, 3):
            async with scripted() as server:
                told: list[Progress] = []
                result = await run_processes(
                    schedule,
                    server.url,
                    processes=count,
                    max_lag_seconds=ANY_LAG,
                    on_progress=told.append,
                )
                host = server.url.removeprefix("http://").encode()
                heads = sorted(h.replace(host, b"") for h in server.heads)
                seen.append((heads, sorted(server.bodies)))
            records = result.records
            assert len(records) == len(schedule) == len(heads)
            assert np.array_equal(records.intended, schedule.times)
            assert (records.send_lag_seconds >= 0).all()
            posts, good, bad = (int((schedule.class_index == k).sum()) for k in range(3))
            assert result.summary().statuses == {200: posts + good, 503: bad}
            assert result.summary("bad").failures == {"status": bad}
            assert result.summary().peers == {"server-1": posts + good}
            assert result.processes == count
            assert not result.interrupted
            assert told[-1].done == len(schedule)
        assert seen[0] == seen[1]
        assert workers() == []

    asyncio.run(both())


def test_more_processes_than_requests() -> None:
    """A process that gets no request does no harm."""

    async def body() -> None:
        schedule = build([ClassLoad(name="x", rate_per_second=5, law="fixed")], seconds=0.2)
        async with scripted() as server:
            result = await run_processes(schedule, server.url, processes=3, max_lag_seconds=ANY_LAG)
        assert result.summary().succeeded == len(schedule) <= 2

    asyncio.run(body())


def test_a_stop_reaches_every_process() -> None:
    """A stop ends the run early: what was sent is recorded, the rest is counted as not sent."""

    async def body() -> None:
        schedule = build([ClassLoad(name="x", rate_per_second=200)], seconds=300, seed=1)
        stop = asyncio.Event()
        async with scripted() as server:

            def after(progress: Progress) -> None:
                if progress.sent > 20:
                    stop.set()

            result = await run_processes(
                schedule, server.url, processes=2, stop=stop, on_progress=after,
                max_lag_seconds=ANY_LAG,
            )  # fmt: skip
            assert len(server.heads) >= len(result.records) > 10
        assert result.interrupted
        assert result.not_sent > 50_000
        assert result.seconds < 100
        assert (result.records.ending == Ending.OK).all()
        assert not any(np.isnan(getattr(result.records, f)).any() for f in FIELDS if f != "status")

    asyncio.run(body())


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_dies_is_an_error(how: signal.Signals) -> None:
    """Records that are lost are never passed over: the run fails, and the others are ended."""

    async def body() -> None:
        schedule = build([ClassLoad(name="x", rate_per_second=50)], seconds=300, seed=1)
        async with scripted() as server:

            def kill(progress: Progress) -> None:
                if progress.sent and (left := workers()):
                    os.kill(left[0], how)

            with pytest.raises(TrimtabError, match="ended early"):
                await run_processes(schedule, server.url, processes=2, on_progress=kill)
        assert workers() == []

    asyncio.run(body())


def test_a_cancelled_run_ends_its_processes() -> None:
    """Cancelling the caller leaves no process behind."""

    async def body() -> None:
        schedule = build([ClassLoad(name="x", rate_per_second=50)], seconds=300, seed=1)
        async with scripted() as server:
            task = asyncio.ensure_future(run_processes(schedule, server.url, processes=2))
            while not server.heads:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert workers() == []

    asyncio.run(body())


def test_an_unknown_host_is_the_childs_error() -> None:
    """What only a child finds out reaches the caller as its sentence."""
    schedule = build([ClassLoad(name="x", rate_per_second=50)], seconds=1, seed=1)
    with pytest.raises(TrimtabError, match=r"cannot look up 'nowhere\.invalid'"):
        asyncio.run(run_processes(schedule, "http://nowhere.invalid:1/"))


@pytest.mark.parametrize("count", [0, -1, 257])
def test_a_number_of_processes_that_makes_no_sense_is_refused(count: int) -> None:
    """From 1 to 256 processes, nothing else."""
    schedule = build([ClassLoad(name="x", rate_per_second=50)], seconds=1, seed=1)
    with pytest.raises(ConfigError, match="from 1 to 256"):
        asyncio.run(run_processes(schedule, "http://127.0.0.1:1/", processes=count))
