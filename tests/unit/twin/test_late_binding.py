"""Late binding in the twin: what waits in the balancer, and what it is worth."""

from dataclasses import replace

import numpy as np
import pytest

from trimtab.twin import engine
from trimtab.twin.agreement import erlang_c_response
from trimtab.twin.compiled import AVAILABLE
from trimtab.twin.workload import Changes, Requests, Servers, poisson
from trimtab.twin.world import World

COUNT = 20_000 if AVAILABLE else 2_000


def lived(servers: Servers, requests: Requests, changes: Changes | None = None, **given) -> World:
    """A world in which all requests have ended; its balancer knows the slots and the deadlines."""
    classes = "abc"[: len(requests.deadline)]
    one = World(
        servers,
        requests,
        changes,
        upstreams=list(classes),
        addresses=[f"s{i}" for i in range(len(servers.slots))],
        deadlines=dict(zip(classes, requests.deadline.tolist(), strict=True)),
        **given,
    )
    one.finish()
    return one


def art(one: World) -> float:
    """Accumulated relative tardiness per request."""
    requests, tardiness = one.totals()
    return tardiness / requests


def test_one_queue_before_one_server_is_mmc() -> None:
    """Held requests of one class wait in the order of arrival, so a server of c slots is M/M/c with
    its queue elsewhere; and none is ever beyond its slots."""
    means = []
    for seed in range(8):
        requests = poisson(COUNT, 2 * 0.7, seed=seed)
        one = lived(Servers.alike(1, 2), requests, hold=True, maintenance_seconds=1e6, seed=seed)
        assert (one.outcome.status == engine.OK).all()
        busy = one.read()[0].addresses["s0"].seconds_at
        assert sum(busy[2:]) == 0
        assert busy[1] > 0
        means.append((one.outcome.ended - requests.at).mean())
    error = np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means) - erlang_c_response(2, 0.7)) < 4 * error


def test_holding_pays_where_classes_differ() -> None:
    """A short urgent class beside a long one: held, their ART is below a third."""
    servers = replace(Servers.alike(3, 2, classes=2), speed=np.array([1.0, 2.0, 4.0]))
    ratios = []
    for seed in range(4):
        requests = poisson(
            COUNT // 2,
            24.0,
            shares=(0.8, 0.2),
            mean_work=(0.3, 1.5),
            deadline=(0.6, 6.0),
            seed=seed,
        )
        at_once, held = (lived(servers, requests, hold=hold, seed=seed) for hold in (False, True))
        ratios.append(art(held) / art(at_once))
    assert np.median(ratios) < 0.33


@pytest.mark.parametrize("hold", [False, True])
def test_nobody_is_lost(hold: bool) -> None:
    """Servers that fail, stop and come back under overload: every request ends, and at rest nothing
    is in flight or waiting."""
    servers = replace(Servers.alike(3, 2, classes=2), speed=np.array([1.0, 2.0, 4.0]))
    requests = poisson(3000, 18.0, shares=(0.5, 0.5), mean_work=(1.0, 0.5), deadline=(2.0, 1.0))
    changes = Changes(
        at=np.array([20.0, 40.0, 60.0, 80.0]),
        server=np.array([2, 2, 1, 1]),
        speed=np.array([4.0, 4.0, 0.0, 2.0]),
        error=np.array([0.5, 0.0, 0.0, 0.0]),
        down=np.array([0, 0, 0, 0]),
    )
    one = lived(servers, requests, changes, hold=hold, balancers=2)
    assert set(one.outcome.status.tolist()) == {engine.OK, engine.FAILED}
    assert (one.outcome.ended >= requests.at).all()
    assert not one._balancers.in_flight.any()
    assert not one._room.waiting.any()
    assert (one._room.first < 0).all()


def test_a_slot_stands_idle_while_a_request_is_handed_over() -> None:
    """Half a second before one that waited; none before one that found the slot free, and none
    where the next is at the server already, as one of short services has one more than slots."""
    requests = Requests(
        at=np.array([0.0, 0.2, 5.0]),
        kind=np.zeros(3, dtype=np.int64),
        work=np.ones(3),
        deadline=np.array([1.0]),
        mean_work=np.array([1.0]),
    )
    given = {"hold": True, "hand_over_seconds": 0.5, "maintenance_seconds": 1e6}
    ended = lived(Servers.alike(1), requests, **given).outcome.ended
    assert ended.tolist() == pytest.approx([1.0, 2.5, 6.0])
    short = replace(requests, at=requests.at / 1000, work=requests.work / 1000)
    ended = lived(Servers.alike(1), short, **given).outcome.ended
    assert ended.tolist() == pytest.approx([0.001, 0.002, 0.006])


def test_unknown_slots_hold_nobody() -> None:
    """Without slots `hold` changes nothing."""
    servers = Servers.alike(2, 2)
    requests = poisson(2000, 3.5)
    with_it, without = (
        lived(servers, requests, hold=hold, slots_known=False) for hold in (True, False)
    )
    assert (with_it.outcome.ended == without.outcome.ended).all()


def test_a_long_class_waits_for_the_fast_server() -> None:
    """The demo's shape: speeds 1 : 2 : 4, and a class whose deadline is shorter than its service on
    the slowest server. Held, that server hardly gets it, and ART is no more than at once."""
    servers = replace(Servers.alike(3, 2, classes=2), speed=np.array([1.0, 2.0, 4.0]) / 8)
    ratios, shares = [], []
    for seed in range(4):
        requests = poisson(
            COUNT // 2, 0.7 * 2 * 7 / 8 / 0.0072, shares=(0.2, 0.8), mean_work=(0.012, 0.006),
            deadline=(0.092, 0.060), seed=seed,
        )  # fmt: skip
        at_once, held = (lived(servers, requests, hold=hold, seed=seed) for hold in (False, True))
        ratios.append(art(held) / art(at_once))
        shares.append((held.outcome.peer[requests.kind == 0] == 0).mean())
    assert np.median(ratios) < 1.0
    assert np.median(shares) < 0.02


def test_estimated_slots_are_tried_out_one_second_in_eight() -> None:
    """A server whose slots are an estimate gets two requests more then, and none otherwise."""
    requests = poisson(COUNT // 4, 30.0, mean_work=(0.1,), deadline=(0.5,))
    one = World(
        Servers.alike(1, 2), requests, upstreams=["a"], addresses=["s0"], deadlines={"a": 0.5},
        hold=True,
    )  # fmt: skip
    one._control.given[:] = 0
    beyond = []
    for _ in range(32):
        before = sum(one.read()[0].addresses["s0"].seconds_at[2:])
        one.advance(1.0)
        beyond.append(sum(one.read()[0].addresses["s0"].seconds_at[2:]) - before)
    shown = one.read()[0].addresses["s0"].seconds_at
    assert sum(shown[4:]) == 0
    assert all(beyond[second] > 0.3 for second in range(8, 32, 8))
    # What was sent there in the last moment of a trial is still there a little later.
    assert sum(b for second, b in enumerate(beyond) if second % 8 > 1) == 0
