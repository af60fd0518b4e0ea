"""The per-request rule in Python, and the golden sequences that the Lua rule is held to."""

import json
import math
import random

import pytest

import rule_sequences
from trimtab.twin import rule


def pick(
    in_flight: list[float],
    *,
    slots: float = 2.0,
    service: float = 0.01,
    uniform: float = 0.0,
    **changed: list[float],
) -> int:
    """Pick among servers that are alike but for what is given."""
    count = len(in_flight)
    ones = [1.0] * count
    return rule.pick(
        count,
        range(count),
        changed.get("weight", ones),
        changed.get("affinity", ones),
        changed.get("skip", [0.0] * count),
        service,
        in_flight,
        changed.get("work", [n * service for n in in_flight]),
        changed.get("rate", ones),
        changed.get("error", [0.0] * count),
        changed.get("slots", [slots] * count),
        changed.get("sharing", [0.0] * count),
        uniform,
        [0.0] * count,
    )


def test_a_server_that_shares_counts_its_own_work_twice() -> None:
    """With n on k cores a request's cost beyond its own time is 2·own·(n + 1 - k)/k, whatever the
    others' work; so the long class goes where it slows few down, and a short one need not."""
    assert rule.score(0.01, 3, 9.9, 1.0, 0.0, 2, 1.0, 1.0) == pytest.approx(0.0115 + 0.02)
    assert rule.score(0.01, 1, 9.9, 1.0, 0.0, 2, 1.0, 1.0) == pytest.approx(0.0105)
    # Unknown slots: as with a queue.
    shared = rule.score(0.01, 3, 0.05, 1.0, 0.0, 0, 1.0, 1.0)
    assert shared == rule.score(0.01, 3, 0.05, 1.0, 0.0, 0, 0.0, 1.0)
    busy = {"rate": [4.0, 1.0], "work": [0.03, 0.0], "sharing": [1.0, 1.0]}
    assert pick([3.0, 0.0], slots=2, service=0.001, **busy) == 0
    assert pick([8.0, 0.0], slots=2, service=0.06, **busy) == 1
    queue = busy | {"sharing": [0.0, 0.0]}
    assert pick([8.0, 0.0], slots=2, service=0.06, **queue) == 0


def test_golden_sequences_are_what_the_rule_answers() -> None:
    """The committed picks, rates, error ratios and urgencies are those of this rule."""
    committed = json.loads(rule_sequences.GOLDEN.read_text())
    drawn = rule_sequences.generate()
    for case, saved in zip(drawn["cases"], committed["cases"], strict=True):
        answers = rule_sequences.replay(case, drawn["tau"])
        assert saved["operations"] == case["operations"]
        for got, want in zip(answers, saved["answers"], strict=True):
            assert got == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_golden_sequences_reach_every_branch() -> None:
    """The sequences draw ties, waits, unknown slots, drained upstreams and long pauses."""
    cases = rule_sequences.golden()["cases"]
    picks = [
        a[0]
        for c in cases
        for o, a in zip(c["operations"], c["answers"], strict=True)
        if o[0] == "dispatch"
    ]
    kinds = {o[0] for c in cases for o in c["operations"]}
    pauses = [
        b[1] - a[1]
        for c in cases
        for a, b in zip(c["operations"], c["operations"][1:], strict=False)
    ]
    assert kinds == {"dispatch", "finish", "idle", "urgency"}
    assert -1 in picks
    assert len(set(picks)) == 12  # eleven peers a class, and none
    assert max(pauses) > 10
    assert {0.0, 1.0, 8.0} <= {k for c in cases for k in c["slots"]}


def test_score_is_the_service_time_while_a_slot_is_free() -> None:
    """Below its slots a server costs the own work over its rate, and up to a tenth more the
    fuller it is."""
    assert rule.score(0.03, 0, 0.0, 2.0, 0.0, 2, 0.0, 1.0) == pytest.approx(0.015)
    assert rule.score(0.03, 1, 0.5, 2.0, 0.0, 2, 0.0, 1.0) == pytest.approx(0.015 * 1.05)


def test_score_adds_the_wait_for_a_slot() -> None:
    """With k = 2 and four jobs of 10 ms in flight, three quarters of 40 ms / 2 pass first."""
    assert rule.score(0.01, 4, 0.04, 1.0, 0.0, 2, 0.0, 1.0) == pytest.approx(0.012 + 0.75 * 0.02)


def test_score_counts_errors_and_weight() -> None:
    """5% errors double the service time, and weight 2 halves the score."""
    assert rule.score(0.01, 0, 0.0, 1.0, 0.05, 2, 0.0, 2.0) == pytest.approx(0.01)


def test_pick_counts_work_and_not_requests() -> None:
    """One long request in flight weighs more than three short ones."""
    assert pick([1.0, 3.0], slots=1, work=[0.2, 0.03]) == 1


def test_pick_prefers_the_faster_when_both_have_room() -> None:
    """Rates decide between servers with free slots."""
    assert pick([1.0, 1.0, 1.0], rate=[1.0, 4.0, 2.0]) == 1


def test_pick_prefers_the_emptier_when_rates_are_nearly_equal() -> None:
    """A rate that is 3% better, within the error of the estimate, does not draw all requests."""
    assert pick([1.0, 0.0], rate=[1.03, 1.0]) == 1


def test_unknown_slots_weigh_load_by_rate() -> None:
    """With slots unknown a server four times as fast takes four times the load, and a little."""
    rates = [1.0, 4.0]
    assert pick([1.0, 4.0], slots=0, rate=rates) == 1
    assert pick([1.0, 8.0], slots=0, rate=rates) == 0


def test_ties_are_drawn_evenly() -> None:
    """Equal servers are picked equally often by a uniform number."""
    rng = random.Random(1)
    counts = [0, 0, 0, 0]
    for _ in range(4000):
        counts[pick([0.0, 1.0, 0.0, 0.0], uniform=rng.random(), skip=[0, 1, 0, 0])] += 1
    assert counts[1] == 0
    assert min(counts[0], counts[2], counts[3]) > 1200


def test_skipped_peers_are_never_picked() -> None:
    """A skipped peer loses even when it is best, and -1 says that all are skipped."""
    assert pick([0.0, 9.0], skip=[1.0, 0.0]) == 1
    assert pick([0.0, 0.0], skip=[1.0, 1.0]) == -1


def simulated_rate(speed: float, *, slots: float = 1.0, jobs: int = 400) -> float:
    """The estimate after `jobs` back-to-back jobs of 10 ms work on a server of this speed."""
    done, busy, last = [0.0], [0.0], [0.0]
    now = 0.0
    for _ in range(jobs):
        rule.advance(0, now, 0, [slots], done, busy, last, 0.3)
        now += 0.01 / speed
        rule.advance(0, now, 1, [slots], done, busy, last, 0.3)
        done[0] += 0.01
    return rule.rate(done[0], busy[0], 1.0, 0.01)


@pytest.mark.parametrize("speed", [0.25, 1.0, 4.0])
def test_rate_finds_the_speed(speed: float) -> None:
    """Back-to-back jobs show a server's speed within 20%, what the prior of two jobs leaves."""
    assert simulated_rate(speed) == pytest.approx(speed, rel=0.2)


def test_a_stalled_server_looks_slow_before_it_answers() -> None:
    """Half a second without a completion takes the rate below a tenth."""
    done, busy, last = [0.3], [0.3], [0.0]
    rule.advance(0, 0.5, 2, [2.0], done, busy, last, 0.3)
    assert rule.rate(done[0], busy[0], 1.0, 0.01) < 0.1


def test_an_idle_server_drifts_to_its_prior() -> None:
    """A slow server that is left alone for a minute is believed to be as good as its prior."""
    done, busy, last = [0.1], [1.0], [0.0]
    rule.advance(0, 60.0, 0, [2.0], done, busy, last, 0.3)
    assert rule.rate(done[0], busy[0], 1.5, 0.01) == pytest.approx(1.5, rel=0.2)


def test_a_clock_that_stands_or_goes_back_changes_nothing() -> None:
    """Times before the last update are taken for it."""
    done, busy, last = [0.1], [0.2], [5.0]
    assert rule.advance(0, 4.0, 3, [2.0], done, busy, last, 0.3) == 0.0
    assert (done, busy, last) == ([0.1], [0.2], [5.0])


def test_error_ratio_follows_failures() -> None:
    """Twenty failures in a row lead to 64%, and twenty successes take it back by as much."""
    ratio = 0.0
    for _ in range(20):
        ratio = rule.error_ratio(ratio, True)
    assert ratio == pytest.approx(1 - 0.95**20)
    for _ in range(20):
        ratio = rule.error_ratio(ratio, False)
    assert ratio == pytest.approx((1 - 0.95**20) * 0.95**20)


def test_errors_are_forgotten_while_idle() -> None:
    """A server that failed every time is worth trying again half a minute later."""
    assert rule.forget(1.0, 30.0) == pytest.approx(math.exp(-3))
    assert rule.score(0.01, 0, 0, 1, rule.forget(1.0, 30.0), 2, 0, 1) == pytest.approx(
        0.02, rel=0.01
    )


def test_urgency_rises_towards_the_deadline_and_then_stays() -> None:
    """The index grows as slack goes, is bounded when late, and prefers short work."""
    values = [rule.urgency(t, 0.0, 0.1, 0.02, 0.02) for t in (0.0, 0.05, 0.08, 0.5)]
    assert values[0] < values[1] < values[2] == values[3]
    assert values[3] == pytest.approx(-math.log(0.1 * 0.02))
    assert rule.urgency(0.5, 0.0, 0.1, 0.01, 0.02) > values[3]
    assert math.isfinite(rule.urgency(1e9, 0.0, 0.1, 0.02, 0.02))


def test_urgency_tells_deadlines_apart_that_are_far() -> None:
    """With services of a millisecond, an hour to spare is more urgent than a day."""
    assert rule.urgency(0, 0, 3600, 0.001, 0.001) > rule.urgency(0, 0, 86400, 0.001, 0.001)


def test_limits_leave_room_where_it_costs_little() -> None:
    """The slots; one more where services are under 20 ms; two more where an estimate is tried out;
    none where they are unknown."""
    assert rule.limit(4, True, 0.02) == 4
    assert rule.limit(4, True, 0.005) == 5
    assert rule.limit(4, False, 0.02) == 6
    assert rule.limit(0, True, 0.02) == math.inf


def _claim(in_flight: list[float], held: float) -> tuple[int, bool]:
    """A request of 10 ms claims one of two servers with a slot each; at the second it would take
    25 ms."""
    work = [0.01 * n for n in in_flight]
    return rule.claim(
        2, [0, 1], [1, 1], [1, 1], [0, 0], 0.01, in_flight, work, [1.0, 0.4], [0, 0], [1, 1],
        [0, 0], [1, 1], held, 0.0, [0.0, 0.0],
    )  # fmt: skip


def test_a_claim_waits_for_the_best_server_as_long_as_another_would_take() -> None:
    """It goes where it ends soonest if there is room, waits for it if not, and takes the slow one
    when it has waited for longer than it would take there, or when enough others wait for the
    fast one."""
    assert _claim([0, 0], 0.0) == (0, True)
    assert _claim([1, 0], 0.0) == (0, False)
    assert _claim([1, 0], 0.024) == (0, False)
    assert _claim([1, 0], 0.026) == (1, True)
    assert _claim([2, 0], 0.0) == (1, True)
    assert _claim([2, 1], 9.0) == (0, False)
