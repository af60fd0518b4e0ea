"""The arms of the live comparison: the trained file for a run's servers, and what is refused."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench_sites import site as bench_site
from trimtab import config
from trimtab.bench.balancers.base import Site
from trimtab.bench.balancers.hook import Hook, promoted_seconds
from trimtab.bench.scenario import find
from trimtab.cli import main
from trimtab.errors import StateError
from trimtab.journal import Entry
from trimtab.learn import trained
from trimtab.learn.actions import searched
from trimtab.training import taught
from trimtab.training.setting import addresses_of, configuration

SCENARIO = find("three-classes")
SERVERS = ("127.0.0.1:19001", "127.0.0.1:19002", "127.0.0.1:19003")


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Where a run would be."""
    return Site(
        scenario=SCENARIO,
        servers=SERVERS,
        listen="127.0.0.1:18080",
        internal_listen="127.0.0.1:18081",
        policy_listen="127.0.0.1:18290",
        admin_listen="127.0.0.1:18291",
        directory=tmp_path,
    )


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """A trained file of one searched profile, for the twin's addresses."""
    twin = configuration(SCENARIO)
    upstreams = {u.name: [p.address for p in u.peers] for u in twin.upstreams}
    weights = {n: dict(zip(a, (0.5, 1.0, 2.0), strict=True)) for n, a in upstreams.items()}
    path = tmp_path / "three-classes-table.json"
    trained.write(path, trained.body_of(upstreams, [searched("twin", "found", weights)], None, {}))
    return path


def loaded(site: Site, path: Path, *, poison: bool) -> trained.Trained:
    """What a policy server of that site loads."""
    made = site.directory / "trained.json"
    trained.write(made, taught._body(path, site, poison=poison))
    return trained.load(made, site.config(slots=True))


def test_the_file_is_for_the_servers_of_the_run(site: Site, given: Path) -> None:
    """Searched weights come to the server of the same place, whatever its port."""
    (profile,) = loaded(site, given, poison=False).profiles
    assert profile.factors["compose"] == dict(zip(SERVERS, (0.5, 1.0, 2.0), strict=True))


def test_the_poisoned_file_is_the_inverse(site: Site, given: Path) -> None:
    """It is a file that the server accepts, with the weights turned round."""
    (profile,) = loaded(site, given, poison=True).profiles
    assert profile.factors["compose"] == dict(zip(SERVERS, (2.0, 1.0, 0.5), strict=True))


def test_addresses_are_found_wherever_they_stand() -> None:
    """As keys, in lists, and at the end of a feature's name, but not within another address."""
    body = {"a:1": ["in_flight/a:1", "a:1", "a:11", 3], "x": {"y": "in_flight/a:11"}}
    assert taught.readdressed(body, {"a:1": "b:2"}) == {
        "b:2": ["in_flight/b:2", "b:2", "a:11", 3],
        "x": {"y": "in_flight/a:11"},
    }


def test_a_file_of_other_servers_is_refused(site: Site, given: Path) -> None:
    """One server fewer, and the file says nothing of this run."""
    whole = json.loads(given.read_text())
    for peers in whole["body"]["upstreams"].values():
        peers.pop()
    trained.write(given, whole["body"])
    with pytest.raises(StateError, match="2 servers in place of 3"):
        taught._body(given, site, poison=False)


def test_each_arm_is_named_once_and_only_the_heuristic_does_not_learn(tmp_path: Path) -> None:
    """least_conn, and four arms with and without holding."""
    names = [arm.name for arm in taught.arms(tmp_path)]
    assert names == [
        "least-conn",
        *("heuristic", "learned", "proving", "poisoned"),
        *("heuristic-held", "learned-held", "proving-held", "poisoned-held"),
    ]


@pytest.mark.parametrize(
    "arguments", [["--duration", "1"], ["--balancer", "nobody"], ["--seeds", "0"]]
)
def test_wrong_arguments_are_refused_before_anything_runs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run has ten seconds at least, and an arm must be known."""
    output = str(tmp_path / "out")
    assert main(["bench", "learning", *arguments, "--output", output]) == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_learning_reaches_the_policy_servers_file(site: Site) -> None:
    """The keys of [learning] that are not the defaults are in what the run's server reads."""
    from dataclasses import replace

    from trimtab.bench.balancers.hook import _toml

    learning = config.Learning(prove=False, decision_seconds=3.0, trained=Path("/t.json"))
    text = "\n".join(_toml(replace(site.config(slots=True), learning=learning)))
    read = config.parse(text).learning
    assert read == learning
    assert addresses_of(config.parse(text)) == list(SERVERS)


def test_the_unhurried_arms_are_named_only_and_keep_the_default_times(
    site: Site, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short run says nothing of them; of [learning] their server reads the file and no more."""
    arms = taught.unhurried_arms(given.parent)
    assert [arm.name for arm in arms] == ["unhurried", "unhurried-held"]
    assert not {arm.name for arm in arms} & {arm.name for arm in taught.arms(tmp_path)}
    started = []
    monkeypatch.setattr(taught.Hook, "start", lambda hook, _site: started.append(hook.learning))
    arms[0].start(site)
    assert started == [config.Learning(trained=site.directory / "trained.json")]


def test_the_time_of_the_first_promotion_is_in_the_journal() -> None:
    """Only a decision promotes: an operator may write what he likes."""
    said = [
        Entry(time=100.0, generation=1, state=None, action="neutral", reason="start", kind="start"),
        Entry(time=130.0, generation=2, state=1, action="neutral", reason="x promoted: y"),
        Entry(
            time=160.0, generation=2, state=1, action="neutral", reason="on trial", kind="decision"
        ),
    ]
    won = replace(said[2], time=400.0, reason="twin promoted: gain 0.30 ± 0.10 in 3 switchbacks")
    assert promoted_seconds([asdict(e) for e in said]) is None
    assert promoted_seconds([asdict(e) for e in (*said, won)]) == 300.0


@pytest.mark.skipif(bool(Hook(name="x", label="x").missing()), reason="no nginx with Lua")
def test_a_running_server_is_asked_what_it_promoted(tmp_path: Path) -> None:
    """Nothing yet; without a policy server there is nobody to ask."""
    for advised in (True, False):
        running = Hook(name="x", label="x", advised=advised).start(
            bench_site(tmp_path / str(advised))
        )
        try:
            assert running.remarks() == {}
        finally:
            running.stop()
