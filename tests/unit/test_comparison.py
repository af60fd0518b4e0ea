"""What learning adds, in the twin: who is compared with whom, and that faults stay harmless."""

from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.cli.learning_tables import every_scenario
from trimtab.demo.scenario import parse
from trimtab.learn import trained
from trimtab.learn.actions import searched
from trimtab.training.comparison import AGAIN, BASE, Comparison, poisoned
from trimtab.training.setting import configuration

SMALL = """
duration_seconds = 60
[load]
requests_per_second = 60
[[server]]
slots = 1
speed = 1
[[server]]
slots = 1
speed = 4
[[class]]
name = "one"
share = 1.0
service_seconds = 0.05
deadline_seconds = 0.1
"""
FACTORS = {"one": {"127.0.0.1:9001": 0.5, "127.0.0.1:9002": 2.0}}


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Ten minutes under each of the faults, the heuristic and least_conn."""
    scenario = parse(SMALL, "small.toml")
    config = configuration(scenario)
    learning = replace(config.learning, observe_seconds=20.0, decision_seconds=10.0, clusters=3)
    path = tmp_path_factory.mktemp("trained") / "t.json"
    servers = {u.name: [p.address for p in u.peers] for u in config.upstreams}
    trained.write(path, trained.body_of(servers, [searched("twin", "found", FACTORS)], None, {}))
    one = Comparison(scenario, replace(config, learning=learning), path, None, 600.0)
    one.run(("least_conn", BASE, AGAIN, "dqn", "garbage", "poisoned", "nan"), (1, 2))
    return one


def test_faults_stay_near_the_heuristic(compared: Comparison) -> None:
    """Random rewards, a poisoned file and rows of NaN: after learning, ART stays within a quarter
    of the heuristic's on the same requests, in windows of ten seconds."""
    for who in ("garbage", "poisoned", "nan"):
        ratio = compared.ratio(who, "after")
        assert ratio is not None
        assert ratio.mean < 1.25, who


def test_the_heuristic_again_differs_by_chance_alone(compared: Comparison) -> None:
    """Other ties give other figures of the same requests, near the first."""
    for half in ("during", "after"):
        first, second = compared.art[BASE][half], compared.art[AGAIN][half]
        assert first != second
        for seed, art in first.items():
            assert second[seed] == pytest.approx(art, rel=0.25)


def test_least_conn_is_worse_and_a_missing_network_is_left_out(compared: Comparison) -> None:
    """Both halves of least_conn have more ART than the heuristic's; without a network no DQN."""
    for half in ("during", "after"):
        ratio = compared.ratio("least_conn", half)
        assert ratio is not None
        assert ratio.mean > 1.0
    assert "dqn" not in compared.art


def test_every_scenario_is_in_one_table(compared: Comparison) -> None:
    """A row for each scenario and learner, with the ratio of the worst seed, and below the table
    what may be above the aim, of those that the guard watches."""
    one = replace(compared, art={n: dict(a) for n, a in compared.art.items()})
    one.art["garbage"] = {h: {1: 2.0, 2: 1.0} for h in ("during", "after")}
    one.art["table"] = one.art["twin W"] = one.art["garbage"]
    one.art[BASE] = {h: {1: 1.0, 2: 1.0} for h in ("during", "after")}
    assert one.worst("garbage", "during") == pytest.approx(2.1 / 1.1)
    assert one.worst("dqn", "during") is None
    who = ("least_conn", BASE, "table", "dqn", "twin W")
    text = every_scenario([one, one], who, 2, hold="off", markdown=True)
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| small")]
    assert [row[1] for row in rows] == ["least_conn", "table", "twin W"] * 2
    assert rows[1][4] == "1.91"
    above, _ = text.splitlines()[-2:]
    assert above.count("worst 1.91") == 4
    assert "small, table, during" in above
    assert "least_conn" not in above
    assert "twin W" not in above
    # One seed gains much: the interval is wide to both sides, but none is worse.
    one.art["table"] = {h: {1: 0.1, 2: 1.0} for h in ("during", "after")}
    above, below = every_scenario([one], who, 2, hold="off", markdown=True).splitlines()[-2:]
    assert above.endswith("in a seed: none.")
    assert "small, table, after 0.4" in below


def test_a_poisoned_file_praises_the_inverse(compared: Comparison) -> None:
    """The searched W turned round, and values that make it the policy's choice."""
    given = trained.load(compared.tables, compared.config)
    enemy = poisoned(given)
    assert enemy.profiles[0].factors == {"one": {"127.0.0.1:9001": 2.0, "127.0.0.1:9002": 0.5}}
    assert enemy.table["overall"] == [["twin", 8, 3.0, 0.01]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--twin"],
        ["learning", "--twin", "--duration", "1"],
        ["learning", "--twin", "--balancer", "nobody"],
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--twin is of learning, and a run there has a minute at least."""
    assert main(["bench", *arguments, "--output", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "out").exists()
