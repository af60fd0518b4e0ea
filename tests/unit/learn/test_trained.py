"""The trained file: what is written is what is loaded, and anything else is refused by name."""

import json
from pathlib import Path

import pytest

from brains import configuration
from trimtab.errors import StateError, TrimtabError
from trimtab.estimate import Estimates
from trimtab.learn import trained
from trimtab.learn.actions import searched
from trimtab.learn.features import Features
from trimtab.policy import Learned

CONFIG = configuration(learning="clusters = 2\nexploration_ratio = 0.0")
UPSTREAMS = {u.name: [p.address for p in u.peers] for u in CONFIG.upstreams}
TWIN = searched("twin", "found", {"a": {"s1:1": 0.5, "s2:1": 2.0, "s3:1": 1.0}})


def observation(level: float, jitter: int) -> Features:
    """A load; bytes are 0, as in the twin."""
    names = ("in_flight/s1:1", "in_bytes_per_second/a", "waiting")
    return Features(names=names, values=(level * (1 + jitter % 7 / 50), 0.0, 0.0))


def learned() -> Learned:
    """A policy that found "twin" better than neutral in every state."""
    policy = Learned(CONFIG, trained.Trained(profiles=(TWIN,)))
    for level in (1.0, 9.0):
        for n in range(40):
            policy.observe(observation(level, n), 1.0)
    policy.fit()
    for level in (1.0, 9.0):
        policy.observe(observation(level, 0), 1.0)
        for _ in range(20):
            for profile, reward in (("neutral", 1.0), ("twin", 3.0)):
                policy.decide()
                policy.observe(observation(level, 0), 1.0)
                policy.learn(profile, reward)
    return policy


def write(path: Path) -> Path:
    """A file of that policy."""
    state = learned().to_state()
    trained.write(path, trained.body_of(UPSTREAMS, [TWIN], state, {"seeds": 2}))
    return path


def test_server_starts_with_what_the_file_has_learned(tmp_path: Path) -> None:
    """With a trained file the policy is fitted at once, chooses the profile that was better in the
    twin, and proposes the weights that were found."""
    policy = Learned(CONFIG, trained.load(write(tmp_path / "t.json"), CONFIG))
    assert policy.fitted
    policy.observe(observation(1.0, 1), 1.0)
    decision = policy.decide()
    assert decision.profile == "twin"
    peers = policy.propose(Estimates(), {}, "twin").upstreams["a"].peers
    assert [peers[a].weight for a in UPSTREAMS["a"]] == pytest.approx([0.5, 2.0, 1.0])
    other = policy.propose(Estimates(), {}, "twin").upstreams["b"].peers
    assert {p.weight for p in other.values()} == {1.0}


def test_live_values_outweigh_the_twins_within_a_few_windows(tmp_path: Path) -> None:
    """Where the twin was wrong of a profile, ten live windows take it back."""
    policy = Learned(CONFIG, trained.load(write(tmp_path / "t.json"), CONFIG))
    for _ in range(10):
        for profile, reward in (("neutral", 3.0), ("twin", 1.0)):
            policy.observe(observation(1.0, 1), 1.0)
            policy.decide()
            policy.learn(profile, reward)
    policy.observe(observation(1.0, 1), 1.0)
    assert policy.decide().profile == "neutral"


def test_what_the_twin_does_not_model_is_left_out_of_the_states(tmp_path: Path) -> None:
    """Live traffic has bytes and held requests; states of the twin do not mind."""
    policy = Learned(CONFIG, trained.load(write(tmp_path / "t.json"), CONFIG))
    names = ("in_flight/s1:1", "in_bytes_per_second/a", "waiting")
    policy.observe(Features(names=names, values=(1.0, 5e6, 12.0)), 1.0)
    assert not policy.status()["state"]["outside"]


def test_another_trained_file_takes_the_place_of_the_saved_state(tmp_path: Path) -> None:
    """A saved state goes on under the file that it began with; a new file begins anew."""
    given = trained.load(write(tmp_path / "t.json"), CONFIG)
    before = Learned(CONFIG, given)
    before.observe(observation(1.0, 1), 1.0)
    for _ in range(30):
        before.decide()
        before.learn("neutral", -5.0)
    saved = json.loads(json.dumps(before.to_state()))
    same, fresh = Learned(CONFIG, given), Learned(CONFIG, given)
    same.restore(saved)
    assert json.loads(json.dumps(same.to_state()["table"])) == saved["table"]
    fresh.restore({**saved, "trained": "of another file"})
    assert fresh.to_state()["table"] == Learned(CONFIG, given).to_state()["table"]


def test_a_file_of_other_servers_is_refused_by_name(tmp_path: Path) -> None:
    """Other upstreams or peers than the configuration's: the message says whose, and what to do."""
    path = write(tmp_path / "t.json")
    with pytest.raises(StateError, match=r"trained for the upstreams a, b, but .* has a, c"):
        trained.load(path, configuration({"a": "", "c": ""}))
    with pytest.raises(StateError, match=r"peers s1:1, s2:1, s3:1 of a.* has s1:1, s9:1; train"):
        trained.load(path, configuration(peers={"s1:1": None, "s9:1": None}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda whole: whole["body"]["profiles"].clear(), "damaged"),
        (lambda whole: whole.update(format=99), "format 99"),
        (lambda whole: whole.pop("sha256"), "not a trained file"),
    ],
    ids=["content", "format", "checksum"],
)
def test_a_damaged_file_is_refused(tmp_path: Path, damage, says: str) -> None:
    """A changed, foreign or incomplete file is an error that names it."""
    path = write(tmp_path / "t.json")
    whole = json.loads(path.read_text())
    damage(whole)
    path.write_text(json.dumps(whole))
    with pytest.raises(StateError, match=rf"t\.json: .*{says}"):
        trained.load(path, CONFIG)


@pytest.mark.parametrize("text", ["", "[1]", "{", "\x00\xff", '{"format": 1}'])
def test_what_is_no_trained_file_is_refused(tmp_path: Path, text: str) -> None:
    """Anything else in the file is one sentence, not a traceback."""
    path = tmp_path / "t.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TrimtabError, match="not a trained file"):
        trained.load(path, CONFIG)
    with pytest.raises(TrimtabError, match="no such file"):
        trained.load(tmp_path / "none.json", CONFIG)


@pytest.mark.parametrize("weight", [0.1, 5.0, float("nan"), -1.0, "2"])
def test_weights_beyond_the_bound_are_refused(tmp_path: Path, weight: object) -> None:
    """A checksum does not make a weight right: outside of [1/3, 3] it is refused as well."""
    body = trained.body_of(UPSTREAMS, [TWIN], None, {})
    body["profiles"][0]["weights"]["a"]["s1:1"] = weight
    if weight == "2":
        assert trained.parse(body).profiles[0].factors["a"]["s1:1"] == 2.0
        return
    with pytest.raises(ValueError, match="a weight of"):
        trained.parse(body)
    if weight == weight:
        trained.write(tmp_path / "t.json", body)
        with pytest.raises(StateError, match="of another shape"):
            trained.load(tmp_path / "t.json", CONFIG)
