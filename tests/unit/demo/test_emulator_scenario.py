"""Scenario files: what is refused, the laws of work, the capacity, the timeline."""

import itertools

import numpy as np
import pytest

from trimtab.demo.scenario import Class, load, parse
from trimtab.demo.timeline import changes
from trimtab.errors import ConfigError

GOOD = """
duration_seconds = 90
[load]
fraction = 0.5
[[server]]
slots = 2
[[server]]
count = 2
slots = 1
speed = 4
[[class]]
name = "only"
service_seconds = 0.02
deadline_seconds = 0.1
"""


def test_a_good_file_is_understood() -> None:
    """Servers are expanded, the path follows the name, the rate follows the fraction."""
    scenario = parse(GOOD, "dir/some.toml")
    assert (scenario.name, len(scenario.servers)) == ("some", 3)
    assert scenario.classes[0].path == "/only"
    assert scenario.capacity_per_second == pytest.approx((2 + 4 + 4) / 0.02)
    assert scenario.requests_per_second == pytest.approx(250)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("slots = 2", "slot = 2", r"f\.toml: unknown key 'slot' in \[\[server\]\] 1 .*'slots'"),
        ("slots = 2", "slots = 0", r"slots in \[\[server\]\] 1 is 0; it must be a whole number"),
        ("slots = 2", "speed = 2", r"\[\[server\]\] 1 lacks the key 'slots'"),
        ("speed = 4", "speed = -1", r"speed in \[\[server\]\] 2 is -1"),
        ("speed = 4", 'discipline = "lifo"', r'must be "fifo" or "ps"'),
        ("speed = 4", "affinity = { x = 2 }", "names the class 'x'; there are: only"),
        ("speed = 4", "affinity = { only = 0 }", "a table of class = factor"),
        ("fraction = 0.5", "", "give the load once"),
        ("fraction = 0.5", "fraction = 0.5\nrequests_per_second = 9", "give the load once"),
        (
            "fraction = 0.5",
            'fraction = 0.5\narrivals = "poisson"',
            "arrivals in .load. is 'poisson'",
        ),
        ('name = "only"', 'name = "only"\nlaw = "normal"', "law in .*exponential"),
        ('name = "only"', 'name = "only"\nshare = 0.5', "sum to 0.5; they must to 1"),
        ('name = "only"', 'name = "a b"', "letters, digits"),
        ("duration_seconds = 90", "length = 90", r"unknown key 'length'; allowed: .*\[event\]"),
        ("duration_seconds = 90", "duration_seconds = 3", "warm_up_seconds is 5; it must be less"),
        ("[load]", "[load", "not valid TOML"),
        ("[[server]]", "[[class]]", r"there is no \[\[server\]\]"),
    ],
)
def test_what_is_wrong_is_named(old: str, new: str, message: str) -> None:
    """File, section, key and what is allowed are in the message."""
    with pytest.raises(ConfigError, match=message):
        parse(GOOD.replace(old, new), "f.toml")


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ('kind = "slow"\nserver = 4', "names server 4; there are 3"),
        ('kind = "slow"\nserver = 0', "a server number from 1"),
        ('kind = "slow"\nserver = []', "a server number from 1"),
        ('kind = "late"\nserver = 1', '"slow" or "noisy"'),
        ('kind = "slow"\nserver = 1\nfrom_ratio = 0.6\nto_ratio = 0.5', "not after its from_ratio"),
    ],
)
def test_bad_events_are_named(event: str, message: str) -> None:
    """Events must point at servers that exist and last for some time."""
    with pytest.raises(ConfigError, match=message):
        parse(f"{GOOD}[[event]]\n{event}\n", "f.toml")


def test_an_absent_or_unreadable_file_is_one_sentence(tmp_path) -> None:
    """No traceback for a path that is wrong."""
    with pytest.raises(ConfigError, match="no such scenario file"):
        load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("law", "cv"),
    [
        ({"law": "exponential"}, 1.0),
        ({"law": "fixed"}, 0.0),
        ({"law": "lognormal", "cv": 0.7}, 0.7),
        ({"law": "bounded_pareto", "tail_index": 2.5, "bound_ratio": 50.0}, None),
        ({"law": "bounded_pareto", "tail_index": 1.0, "bound_ratio": 50.0}, None),
    ],
)
def test_laws_have_the_stated_mean(law, cv) -> None:
    """200 000 draws: the mean within four standard errors, the variation as stated."""
    kind = Class(name="k", service_seconds=0.03, deadline_seconds=1.0, **law)
    drawn = kind.draw(200_000, np.random.default_rng(5))
    assert drawn.min() > 0
    assert drawn.mean() == pytest.approx(0.03, abs=4 * drawn.std() / 200_000**0.5 + 1e-12)
    if cv is not None:
        assert drawn.std() / drawn.mean() == pytest.approx(cv, abs=0.02)
    else:
        assert drawn.max() / drawn.min() < 50.0


def test_capacity_with_affinity_is_that_of_the_best_assignment() -> None:
    """Two servers, each three times slower for one of two classes: as fast as without."""
    text = GOOD.split("[[server]]")[0] + (
        "[[server]]\nslots = 1\naffinity = { a = 3 }\n[[server]]\nslots = 1\naffinity = { b = 3 }\n"
        '[[class]]\nname = "a"\nshare = 0.5\nservice_seconds = 0.01\ndeadline_seconds = 1\n'
        '[[class]]\nname = "b"\nshare = 0.5\nservice_seconds = 0.01\ndeadline_seconds = 1\n'
    )
    assert parse(text).capacity_per_second == pytest.approx(200)
    # With 90% of class a, server 1 must help: its rest of time serves a at a third of the speed.
    skewed = text.replace("share = 0.5", "share = 0.9", 1).replace("share = 0.5", "share = 0.1")
    rate = parse(skewed).capacity_per_second
    assert 0.9 * rate == pytest.approx(100 + (100 - 0.1 * rate) / 3)


def test_timeline_of_overlapping_events() -> None:
    """Slowdowns multiply, a hang wins, everything ends where it should."""
    events = "".join(
        f'[[event]]\nkind = "{kind}"\nserver = {server}\nfrom_ratio = {begin}\nto_ratio = {end}\n'
        for kind, server, begin, end in [
            ("slow", "[2, 3]", 0.0, 0.5),
            ("slow", 2, 0.25, 0.75),
            ("hang", 2, 0.4, 0.45),
            ("crash", 1, 0.5, 0.6),
            ("error", '"all"', 0.9, 1.0),
        ]
    )
    found = changes(parse(GOOD + events), 0, 100.0)
    of_two = [(c.at_seconds, c.speed) for c in found if c.server == 1 and c.at_seconds < 90]
    assert of_two == [(0, 1), (25, 0.25), (40, 0), (45, 0.25), (50, 1), (75, 4)]
    assert [(c.at_seconds, c.down) for c in found if c.server == 0] == [
        (50, True),
        (60, False),
        (90, False),
        (100, False),
    ]
    assert [c.error_ratio for c in found if c.at_seconds == 90] == [1, 1, 1]
    assert [c.at_seconds for c in found] == sorted(c.at_seconds for c in found)


def test_noise_is_drawn_from_the_seed_in_the_stated_proportion() -> None:
    """One second in five is noisy on average, the same again for the same seed."""
    noise = '[[event]]\nkind = "noisy"\nserver = "all"\non_seconds = 1\noff_seconds = 4\n'
    scenario = parse(GOOD + noise)
    found = changes(scenario, 7, 20_000.0)
    assert found == changes(scenario, 7, 20_000.0)
    assert found != changes(scenario, 8, 20_000.0)
    assert {c.speed for c in found} == {0.25, 1.0, 4.0}
    of_one = [c for c in found if c.server == 0]
    slow = sum(
        b.at_seconds - a.at_seconds for a, b in itertools.pairwise(of_one) if a.speed == 0.25
    )
    assert slow / 20_000 == pytest.approx(0.2, abs=0.02)
