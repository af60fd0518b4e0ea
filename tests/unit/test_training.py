"""Training in the twin: what comes out, going on, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from small_system import SMALL
from trimtab import assembly, config
from trimtab.actuators.board import Board
from trimtab.bench.scenario import find
from trimtab.cli import main
from trimtab.demo.scenario import Scenario, parse
from trimtab.errors import ConfigError, StateError
from trimtab.learn import trained
from trimtab.learn.actions import PROFILES
from trimtab.learn.features import Features
from trimtab.policy import Learned
from trimtab.sources.reported import Reported
from trimtab.training import setting
from trimtab.training.course import Stage, Training
from trimtab.twin.agreement import checks
from trimtab.twin.world import RULES

CONFIG = """
[learning]
observe_seconds = 20.0
decision_seconds = 6.0
clusters = 4
[[upstream]]
name = "one"
location = "/short"
[[upstream.peer]]
address = "10.0.0.1:80"
[[upstream.peer]]
address = "10.0.0.2:80"
[[upstream]]
name = "two"
location = "/long"
deadline_seconds = 0.3
[[upstream.peer]]
address = "10.0.0.1:80"
[[upstream.peer]]
address = "10.0.0.2:80"
"""


@pytest.fixture
def scenario() -> Scenario:
    """Two classes on two servers."""
    return parse(SMALL, "small.toml")


def plan(scenario: Scenario, output: Path, seeds: int = 2, **given) -> Training:
    """A training of seconds."""
    made = setting.configuration(scenario, config.parse(CONFIG))
    return Training(
        scenario, made, output, seconds=60.0, seeds=seeds, **{"evaluations": 12, **given}
    )


def test_trained_file_is_what_the_server_starts_from(scenario: Scenario, tmp_path: Path) -> None:
    """A training ends in a file that this configuration's server loads: states, and values of what
    was tried."""
    output = tmp_path / "t.json"
    work = plan(scenario, output)
    work.run()
    made = setting.configuration(scenario, config.parse(CONFIG))
    policy = Learned(made, trained.load(output, made))
    values = policy.status()["values"]
    assert policy.fitted
    assert sum(len(tried) for tried in values.values()) >= 2
    assert {"neutral", "affinity", "fast", "spread", "as learned"} <= set(work.art_per_1000)
    overall = trained.read(output)[0]["policy"]["table"]["overall"]
    assert [name for name, *_ in overall] == [p.name for p in (*PROFILES, *work.profiles)][1:]
    assert work.requests > 4 * 60 * 15


def test_what_was_measured_better_is_what_the_server_starts_with(
    scenario: Scenario, tmp_path: Path
) -> None:
    """Advantages over neutral on the same requests are known over all states: a fresh server
    chooses the best of those that are sure, in a state that it has never met."""
    work = plan(scenario, tmp_path / "t.json", seeds=1, evaluations=0)
    work.run()
    body, _ = trained.read(tmp_path / "t.json")
    rows = body["policy"]["table"]["overall"]
    body["policy"]["table"]["overall"] = [
        [n, 8, 1.0 if n == "fast" else -1.0, 0.1] for n, *_ in rows
    ]
    trained.write(tmp_path / "t.json", body)
    made = setting.configuration(scenario, config.parse(CONFIG))
    made = replace(made, learning=replace(made.learning, exploration_ratio=0.0))
    policy = Learned(made, trained.load(tmp_path / "t.json", made))
    names = policy.status()["clusters"][0]["means"]
    policy.observe(Features(names=tuple(names), values=tuple(99.0 for _ in names)), 1.0)
    assert policy.decide().profile == "fast"


def test_interrupted_training_goes_on_to_the_same_result(
    scenario: Scenario, tmp_path: Path
) -> None:
    """Ctrl-C in the second episode keeps the first; going on gives what one run gives."""
    whole, cut = plan(scenario, tmp_path / "whole.json"), plan(scenario, tmp_path / "cut.json")
    whole.run()

    def interrupt(stage: Stage) -> None:
        if stage.label == "episode 2":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut.run(interrupt)
    kept, _ = trained.read(tmp_path / "cut.json")
    assert kept["training"]["progress"]["seeds"] == [1]
    again = plan(scenario, tmp_path / "cut.json")
    again.resume()
    again.run()
    one, other = (trained.read(tmp_path / n)[0] for n in ("whole.json", "cut.json"))
    assert one["profiles"] == other["profiles"]
    assert again.art_per_1000 == whole.art_per_1000
    assert again.seeds_done == 2
    more = plan(scenario, tmp_path / "cut.json", seeds=3)
    more.resume()
    more.run()
    assert more.seeds_done == 3


def test_dqn_is_written_beside_and_loaded_without_torch(scenario: Scenario, tmp_path: Path) -> None:
    """`--method dqn` leaves a network that the server reads with numpy; a changed one is not."""
    pytest.importorskip("torch", reason="the extra dqn is not installed")
    output = tmp_path / "t.json"
    plan(scenario, output, seeds=5, evaluations=0, with_network=True).run()
    made = setting.configuration(scenario, config.parse(CONFIG))
    given = trained.load(output, made)
    assert given.network is not None
    assert given.network.actions == ("neutral", "affinity", "fast", "spread")
    assert Learned(made, given).fitted
    again = plan(scenario, output, seeds=5, evaluations=0, with_network=True)
    again.resume()
    again.run()
    (file,) = tmp_path.glob("*.npz")
    assert trained.load(output, made).network is not None
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(StateError, match=r"not the network that t\.json names"):
        trained.load(output, made)
    file.unlink()
    with pytest.raises(StateError, match="cannot be read"):
        trained.load(output, made)


def test_going_on_with_another_plan_is_refused(scenario: Scenario, tmp_path: Path) -> None:
    """A file of another training is not mixed with this one."""
    plan(scenario, tmp_path / "t.json", seeds=1, evaluations=0).run()
    with pytest.raises(ConfigError, match="of another training"):
        plan(scenario, tmp_path / "t.json", evaluations=13).resume()


def test_configuration_maps_upstreams_and_servers_in_order(scenario: Scenario) -> None:
    """Names differ from the scenario's: the order counts, and what is given stands."""
    made = setting.configuration(scenario, config.parse(CONFIG))
    assert [u.name for u in made.upstreams] == ["one", "two"]
    assert [u.deadline_seconds for u in made.upstreams] == [0.12, 0.3]
    same = replace(
        scenario, classes=tuple(replace(c, name=n) for c, n in zip(
            reversed(scenario.classes), ("one", "two"), strict=True))
    )  # fmt: skip
    assert setting.configuration(same, config.parse(CONFIG)).upstreams[0].deadline_seconds == 0.6


def test_configuration_of_another_size_is_refused() -> None:
    """A configuration with other servers than the scenario's cannot be trained for by it."""
    with pytest.raises(ConfigError, match="2 upstreams and 2 servers, the scenario twelve"):
        setting.configuration(find("twelve"), config.parse(CONFIG))


def test_command_writes_the_file_and_tells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`trimtab train` ends with the table of the profiles and what to do with the file."""
    (tmp_path / "small.toml").write_text(SMALL)
    output = tmp_path / "sub" / "t.json"
    status = main(
        ["train", "--scenario", str(tmp_path / "small.toml"), "--seconds", "60", "--seeds", "1",
         "--evaluations", "0", "--output", str(output)]
    )  # fmt: skip
    told = capsys.readouterr()
    assert status == 0
    assert "neutral" in told.out
    assert f'trained = "{output}"' in told.out
    assert json.loads(output.read_text())["format"] == 1
    assert "episode 1" in told.err


def test_server_starts_from_the_file_of_its_configuration(
    scenario: Scenario, tmp_path: Path
) -> None:
    """`trained` in [learning] is read when the policy server is built; it goes on from what was
    learned live, and a file that does not fit stops it with the reason."""
    file = tmp_path / "t.json"
    plan(scenario, file, seeds=1, evaluations=0).run()
    text = CONFIG.replace("clusters = 4", f'clusters = 4\ntrained = "{file}"')
    parsed = config.parse(text)
    board = Board()
    brain = assembly.build(parsed, Reported(parsed), board, tmp_path / "state")
    assert brain.status()["values"]
    assert brain.status()["phase"] == "observing"
    brain.save()
    brain.close()
    again = assembly.build(parsed, Reported(parsed), Board(), tmp_path / "state")
    assert again.status()["values"] == brain.status()["values"]
    again.close()
    other = config.parse(text.replace("10.0.0.2:80", "10.0.0.3:80"))
    with pytest.raises(StateError, match=r"trained for the peers 10.0.0.1:80, 10.0.0.2:80 of one"):
        assembly.build(other, Reported(other), Board(), tmp_path / "state")


def test_agreement_prints_both_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`trimtab train --agreement` shows every formula and every rule; here with few requests."""
    from trimtab.cli import train

    monkeypatch.setattr(train, "checks", lambda: checks(count=600, runs=2))
    monkeypatch.setattr(train, "speed_per_second", lambda: 1e6)
    monkeypatch.setattr(train, "RULES_SECONDS", 10.0)
    monkeypatch.setattr(train, "RULES_WARM_UP_SECONDS", 2.0)
    assert main(["train", "--agreement", "--scenario", "equal"]) == 0
    told = capsys.readouterr().out
    assert "M/G/1-PS" in told
    assert "1,000,000 requests per second" in told
    assert all(told.count(f"\n{rule} ") == 2 for rule in RULES)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (["--seconds", "5"], "--seconds is 5"),
        (["--seeds", "0"], "--seeds is 0"),
        (["--evaluations", "-1"], "--evaluations is -1"),
        (["--scenario", "nowhere"], "no scenario 'nowhere'"),
        (["--scenario", "none.toml"], "no such scenario file"),
        (["--config", "none.toml"], "no such file"),
        (["--output", "."], "is a directory"),
        (["--seconds", "nan"], "--seconds is nan"),
    ],
    ids=lambda v: v[0] if isinstance(v, list) else "",
)
def test_wrong_arguments_are_status_2(
    wrong: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bad input ends with status 2 and one sentence, before anything has been simulated."""
    output = [] if "--output" in wrong else ["--output", str(tmp_path / "t.json")]
    assert main(["train", *wrong, *output]) == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


def test_command_refuses_to_go_on_with_a_damaged_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--resume reads the output first; what is no trained file stays untouched."""
    (tmp_path / "t.json").write_text("{}")
    assert main(["train", "--resume", "--output", str(tmp_path / "t.json")]) == 1
    assert "not a trained file" in capsys.readouterr().err
    assert (tmp_path / "t.json").read_text() == "{}"
