"""What the waiting room guarantees to who is late, whatever comes. The Lua side binds the same
(tests/nginx/core/test_rule.py)."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import rule_sequences
from trimtab.twin.room import DEADLINE_SERVICES, TURNS

CLASSES = st.lists(
    st.tuples(
        st.floats(0.001, 0.2).map(lambda s: round(s, 4)),
        st.one_of(st.just(0.0), st.floats(0.001, 5).map(lambda d: round(d, 4))),
    ),
    min_size=2,
    max_size=5,
)
# Mostly arrivals: the room fills, as in overload.
STEPS = st.lists(
    st.tuples(
        st.floats(0, 0.05),
        st.sampled_from(["arrive", "arrive", "arrive", "finish", "leave", "look"]),
        st.integers(0, 999),
    ),
    min_size=50,
    max_size=300,
)


def drawn_room(
    classes: list[tuple[float, float]], steps: list[tuple[float, str, int]], slots: int
) -> dict[str, Any]:
    """A room of one server, as rule_sequences has them, that empties in the end."""
    now = 1000.0
    operations: list[list[Any]] = []
    for gap, what, which in steps:
        now = round(now + gap, 6)
        operations.append([what, now, which % len(classes) if what == "arrive" else which, 0.5])
    for _ in range(len(steps)):
        now = round(now + 0.01, 6)
        operations.append(["finish", now, 0, 0.5])
    one = {"server": [0], "weight": [1.0], "affinity": [1.0], "skip": [0.0]}
    return {
        "slots": [float(slots)], "given": [True], "rate": [1.0], "error": [0.0],
        "sharing": [0.0], "mean_service": sum(s for s, _ in classes) / len(classes),
        "classes": [{"service": s, "deadline": d} | one for s, d in classes],
        "operations": operations,
    }  # fmt: skip


@given(classes=CLASSES, steps=STEPS, slots=st.integers(1, 3))
@settings(deadline=None, max_examples=150)
def test_who_is_late_is_bound_after_so_many_others(
    classes: list[tuple[float, float]], steps: list[tuple[float, str, int]], slots: int
) -> None:
    """One that is late and finds N older ones is bound after at most TURNS * (N + 1) others,
    whatever their classes and deadlines are."""
    drawn = drawn_room(classes, steps, slots)
    answers = rule_sequences.replay_room(drawn)
    arrivals = [(now, which) for what, now, which, _ in drawn["operations"] if what == "arrive"]
    waiting: list[int] = []
    allowed: dict[int, int] = {}
    arrived = 0
    bound_in_all = 0
    for (what, now, which, _), bound in zip(drawn["operations"], answers, strict=True):
        if what == "arrive":
            waiting.append(arrived)
            arrived += 1
        elif what == "leave" and waiting:
            allowed.pop(waiting.pop(which % len(waiting)), None)
        for number in waiting:
            at, j = arrivals[number]
            service, deadline = classes[j]
            is_late = now > at + (deadline or DEADLINE_SERVICES * service) - service
            if is_late and number not in allowed:
                older = sum(arrivals[other][0] <= at for other in waiting) - 1
                allowed[number] = TURNS * (older + 1)
        for number, _ in bound:
            waiting.remove(number)
            assert allowed.pop(number, 1) > 0
            bound_in_all += 1
            for other in allowed:
                allowed[other] -= 1
                assert allowed[other] >= 0, f"{other} waits though it was its turn"
    assert not waiting
    assert bound_in_all > 0
