"""The per-request rule in Lua, in a real nginx, against the sequences that Python made."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import rule_sequences
from nginx.wire.harness import post_json, serving


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that runs rule_checks.lua."""
    with serving(
        tmp_path_factory.mktemp("rule"), Path(__file__).parent / "rule_checks.lua"
    ) as port:
        yield port


def test_lua_rule_answers_the_golden_sequences(port: int) -> None:
    """Picks are the same, and scores, rates, error ratios and urgencies to 12 digits."""
    golden = json.loads(rule_sequences.GOLDEN.read_text())
    answers = post_json(port, "/", golden)
    for case, got in zip(golden["cases"], answers["cases"], strict=True):
        for operation, mine, want in zip(case["operations"], got, case["answers"], strict=True):
            assert mine == pytest.approx(want, rel=1e-12, abs=1e-13), operation
            if operation[0] == "dispatch":
                assert mine[0] == want[0], operation


def test_lua_rule_answers_a_second_seed(port: int) -> None:
    """Sequences that were never looked at agree too."""
    drawn = rule_sequences.generate(seed=7)
    answers = post_json(port, "/", drawn)
    for case, mine in zip(drawn["cases"], answers["cases"], strict=True):
        for got, want in zip(mine, rule_sequences.replay(case, drawn["tau"]), strict=True):
            assert got == pytest.approx(want, rel=1e-12, abs=1e-13)


@pytest.mark.parametrize("seed", [rule_sequences.SEED, 11])
def test_lua_room_binds_the_same(port: int, seed: int) -> None:
    """The same requests are bound to the same peers in the same order, and as many still wait."""
    drawn = json.loads(rule_sequences.GOLDEN.read_text())
    if seed != rule_sequences.SEED:
        drawn = rule_sequences.generate(seed)
    answers = post_json(port, "/", drawn)
    bound = 0
    for case, got in zip(drawn["rooms"], answers["rooms"], strict=True):
        want = case.get("answers") or rule_sequences.replay_room(case)
        for operation, mine, its in zip(case["operations"], got["bound"], want, strict=True):
            # An empty table of Lua is an empty object of JSON.
            assert list(mine) == its, (case["what"], operation)
        bound += sum(map(len, want))
        assert got["waiting"] == got["held"]
    assert bound > 300


def test_cost_of_a_scan_is_linear(port: int) -> None:
    """A pick among 1000 peers costs at most 40 times one among 100 (printed with -s)."""
    costs = {
        n: post_json(port, "/", {"cost": n, "rounds": 2000})["microseconds"]
        for n in (10, 100, 1000)
    }
    print("pick, microseconds by peers:", {n: round(c, 2) for n, c in costs.items()})
    assert costs[1000] < 40 * max(costs[100], 0.1)
