"""States: found, kept over refits, and never in the way of odd data."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from trimtab.learn import clusters
from trimtab.learn.clusters import BIC_COUNTS, Clusters, allowed_clusters, fit, fit_bic, fit_wanted
from trimtab.learn.features import Features

NAMES = ("in_flight/s1:1", "response_time_seconds/a", "requests_per_second/a", "connections")


def drawn(centres, count: int, seed: int = 0, names=NAMES, spread: float = 0.1) -> list[Features]:
    """`count` observations around each centre in turn, lognormal."""
    rng = np.random.default_rng(seed)
    return [
        Features(
            names=names,
            values=tuple(float(x) for x in np.array(c) * np.exp(rng.normal(0, spread, len(c)))),
        )
        for _ in range(count)
        for c in centres
    ]


LOW, MIDDLE, HIGH = (1.0, 0.01, 50.0, 8.0), (4.0, 0.03, 200.0, 20.0), (20.0, 0.2, 300.0, 90.0)


def at(centre, names=NAMES) -> Features:
    """The centre itself as an observation."""
    return Features(names=names, values=tuple(centre))


@pytest.mark.parametrize("seed", range(3))
def test_separate_conditions_are_separate_states(seed: int) -> None:
    """Three kinds of load become three states with means within 5%, and none lies outside."""
    found = fit(drawn([LOW, MIDDLE, HIGH], 60, seed), 3, seed=seed)
    states = [found.classify(at(c)) for c in (LOW, MIDDLE, HIGH)]
    assert len({s.index for s in states}) == 3
    assert not any(s.outside for s in states)
    for centre, state in zip((LOW, MIDDLE, HIGH), states, strict=True):
        mean = found.readable_means()[state.index]
        assert [mean[n] for n in NAMES] == pytest.approx(centre, rel=0.05)


def test_share_outside_three_sigma_is_small() -> None:
    """Of new observations of the same kind less than 3% lie outside (0.27% for Gaussians)."""
    found = fit(drawn([LOW, HIGH], 200, 0), 2)
    fresh = [found.classify(o) for o in drawn([LOW, HIGH], 500, 1)]
    assert sum(s.outside for s in fresh) < 0.03 * len(fresh)


def test_what_was_never_seen_lies_outside() -> None:
    """An observation far from every state is told from those within."""
    found = fit(drawn([LOW, MIDDLE], 60), 2)
    state = found.classify(at(HIGH))
    assert state.outside
    assert state.log_likelihood < found.classify(at(LOW)).log_likelihood


def test_samples_bound_the_number_of_clusters() -> None:
    """One cluster for ten samples, at least one, at most as many as wanted or differ."""
    assert [allowed_clusters(27, n) for n in (0, 9, 10, 120, 1000)] == [1, 1, 1, 12, 27]
    assert len(fit(drawn([LOW], 55), 27).identities) == 5
    assert len(fit([at(LOW)] * 100, 27).identities) == 1
    assert len(fit(drawn([LOW], 1), 27).identities) == 1


def test_constant_columns_are_watched() -> None:
    """A column that never varied is no part of the mixture, but a jump of it is outside."""
    observations = [
        Features(names=o.names, values=(*o.values[:3], 7.0)) for o in drawn([LOW, MIDDLE], 60)
    ]
    found = fit(observations, 2)
    assert found.names == NAMES[:3]
    assert not found.classify(at((*LOW[:3], 7.0))).outside
    assert found.classify(at((*LOW[:3], 70.0))).outside
    assert found.readable_means()[0]["connections"] == pytest.approx(7.0)


def test_missing_values_are_judged_by_the_others() -> None:
    """NaN in an observation leaves it in its state; a column that is always NaN is left out."""
    broken = [
        Features(
            names=(*o.names, "never"),
            values=(o.values[0], math.nan if n % 5 == 0 else o.values[1], *o.values[2:], math.nan),
        )
        for n, o in enumerate(drawn([LOW, HIGH], 60))
    ]
    found = fit(broken, 2)
    names = (*NAMES, "never")
    whole = found.classify(at((*HIGH, 1.0), names)).index
    assert found.classify(at((HIGH[0], math.nan, HIGH[2], math.nan, 1.0), names)).index == whole
    assert math.isfinite(found.classify(at((math.nan,) * 5, names)).log_likelihood)


@pytest.mark.parametrize("value", [math.inf, -math.inf, -5.0, 1e300])
def test_absurd_values_do_no_harm(value: float) -> None:
    """Infinite, negative and huge values give a state and a finite likelihood."""
    found = fit([*drawn([LOW, HIGH], 60), at((value, 0.01, 50.0, 8.0))], 3)
    state = found.classify(at((value, *LOW[1:])))
    assert state.index in found.identities
    assert math.isfinite(state.log_likelihood)


def test_all_columns_constant() -> None:
    """With nothing to tell states apart there is one."""
    found = fit([at(LOW)] * 50, 3)
    assert found.classify(at(LOW)).index == 0
    assert not found.classify(at(LOW)).outside
    assert found.classify(at(HIGH)).outside


def test_states_keep_their_identity_over_a_refit() -> None:
    """Conditions that are found again keep their number, whatever the seed; a new one gets a
    number that was not in use."""
    before = fit(drawn([LOW, MIDDLE], 60, 0), 2, seed=0)
    names = {c: before.classify(at(c)).index for c in (LOW, MIDDLE)}
    after = fit(drawn([HIGH, MIDDLE, LOW], 60, 5), 3, seed=9, previous=before)
    assert {c: after.classify(at(c)).index for c in (LOW, MIDDLE)} == names
    assert after.classify(at(HIGH)).index not in names.values()


def test_a_state_that_is_gone_does_not_pass_its_number_on() -> None:
    """A far cluster is another state: the number of one that ended is not used again at once."""
    before = fit(drawn([LOW], 60), 1)
    after = fit(drawn([HIGH], 60), 1, previous=before)
    assert set(before.identities).isdisjoint(after.identities)


def test_peers_may_come_and_go() -> None:
    """Unknown names are ignored and missing ones marginalised; a refit with other names still
    knows its states."""
    before = fit(drawn([LOW, HIGH], 60), 2)
    names = (*NAMES[1:], "in_flight/new:1")
    seen = drawn([(*LOW[1:], 3.0), (*HIGH[1:], 9.0)], 60, 1, names)
    assert before.classify(seen[0]).index == before.classify(at(LOW)).index
    assert before.classify(seen[1]).index == before.classify(at(HIGH)).index
    after = fit(seen, 2, previous=before)
    assert set(after.identities) == set(before.identities)
    assert after.classify(seen[1]).index == before.classify(at(HIGH)).index
    assert "in_flight/new:1" in after.names


def test_observations_of_older_names_are_left_out() -> None:
    """A fit uses those observations that have the last one's columns."""
    old = drawn([HIGH], 50, names=("w", "x", "y", "z"))
    found = fit([*old, *drawn([LOW], 50)], 1)
    assert found.names == NAMES


def test_fit_is_bounded() -> None:
    """Far more observations than the bound are thinned out, and the states are the same."""
    found = fit(drawn([LOW, MIDDLE, HIGH], 3000), 3)
    assert len({found.classify(at(c)).index for c in (LOW, MIDDLE, HIGH)}) == 3


def test_nothing_observed_is_an_error() -> None:
    """There is no state without an observation."""
    with pytest.raises(ValueError, match="no observation"):
        fit([], 3)


def test_state_survives_a_round_trip() -> None:
    """Restored clusters classify alike; damage is refused."""
    found = fit(drawn([LOW, MIDDLE, HIGH], 60), 3)
    state = json.loads(json.dumps(found.to_state(), allow_nan=False))
    again = Clusters.from_state(state)
    for observation in drawn([LOW, MIDDLE, HIGH], 20, 7):
        one, two = found.classify(observation), again.classify(observation)
        assert (one.index, one.outside) == (two.index, two.outside)
        assert one.log_likelihood == pytest.approx(two.log_likelihood, abs=0.01)
    for damage in (
        {"means": [[1.0]]},
        {"identities": [0, 0, 1]},
        {"identities": []},
        {"units": [0.0] * 4},
        {"weights": [math.nan] * 3},
        {"covariances": (-np.ones((3, 4, 4))).tolist()},
        {"constants": {"x": [0, 1]}},
        {"names": None},
    ):
        with pytest.raises((KeyError, TypeError, ValueError)):
            Clusters.from_state(state | damage)


def test_classifying_needs_no_scikit_learn() -> None:
    """The server imports scikit-learn only to fit: importing and restoring do without."""
    code = (
        "import sys, trimtab.controller, trimtab.learn.clusters as c\n"
        "assert not {'sklearn', 'scipy'} & set(sys.modules), 'imported'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_bic_finds_how_many_loads_there_are() -> None:
    """Three loads apart from each other are three states, whatever could be fitted."""
    random = np.random.default_rng(7)
    seen = [
        Features(names=("x", "y"), values=tuple((level * random.lognormal(0, 0.05, 2)).tolist()))
        for level in (1.0, 10.0, 100.0)
        for _ in range(100)
    ]
    assert len(fit_bic(seen).identities) == 3


def test_bic_keeps_the_identity_of_what_was_known() -> None:
    """Chosen anew after a third load came, the two known states keep their names."""
    before = fit_wanted(drawn([LOW, MIDDLE], 100), "bic")
    after = fit_wanted(drawn([LOW, MIDDLE, HIGH], 100, seed=1), "bic", previous=before)
    assert len(before.identities) == 2
    assert len(after.identities) == 3
    for centre in (LOW, MIDDLE):
        assert after.classify(at(centre)).index == before.classify(at(centre)).index
    assert after.classify(at(HIGH)).index not in before.identities


def test_bic_ends_when_more_clusters_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two loads: nothing beyond the second count that is worse than the best is fitted."""
    tried = []
    monkeypatch.setattr(
        clusters, "fit", lambda seen, wanted, **given: tried.append(wanted) or fit(
            seen, wanted, **given
        )
    )  # fmt: skip
    assert len(fit_bic(drawn([LOW, HIGH], 300)).identities) == 2
    assert max(tried) <= 5 < max(BIC_COUNTS)


def test_bic_takes_observations_with_gaps_and_of_other_names() -> None:
    """What lacks a value, or has other names, is judged by what it has."""
    seen = drawn([LOW, HIGH], 100)
    seen[3] = Features(names=NAMES, values=(math.nan, *seen[3].values[1:]))
    seen[4] = Features(names=NAMES[:2], values=seen[4].values[:2])
    assert len(fit_bic(seen).identities) == 2
    assert fit_bic([seen[4]]).identities == (0,)
