"""The tables and the JSON of outcomes that are made up."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.bench.balancers.base import Running, Site
from trimtab.bench.balancers.known import BALANCERS, PEERS, QUICK, chosen
from trimtab.bench.markdown import markdown_of
from trimtab.bench.outcome import Outcome, read, warm_up_seconds, write
from trimtab.bench.report import notes, scenario_report, write_json
from trimtab.bench.runner import Plan, Results
from trimtab.bench.scenario import find
from trimtab.bench.tables import shares_text, tables, wrapped
from trimtab.bench.verdict import compare, lost
from trimtab.errors import ConfigError, StateError
from trimtab.twin.bounds import Summary

NAMES = ["least-conn", "least-conn-shared", "haproxy-maxconn", "trimtab"]
ART = {"least-conn": 80.0, "least-conn-shared": 40.0, "haproxy-maxconn": 16.0, "trimtab": 4.0}


def outcome(balancer: str, seed: int, **changed) -> Outcome:
    """A run of three classes; each seed is as much worse for all."""
    made = Outcome(
        scenario="three-classes",
        balancer=balancer,
        seed=seed,
        seconds=10.0,
        warm_up_seconds=2.5,
        requests=4500,
        art_per_1000=ART[balancer] * seed,
        p50_seconds=0.01,
        p99_seconds=0.1 if balancer == "trimtab" else 0.2,
        p999_seconds=0.3,
        error_ratio=0.0,
        goodput_per_second=600.0,
        shares={"server 1": 0.2, "server 2": 0.3, "server 3": 0.5},
        classes={},
        cpu_seconds_per_request=50e-6,
        send_lag_p99_seconds=0.001,
        lateness_p99_seconds=0.001,
        valid=True,
    )
    return replace(made, **changed)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """Three classes, four balancers, three seeds."""
    return Plan(
        scenarios=[find("three-classes")],
        balancers=chosen(NAMES),
        seeds=(1, 2, 3),
        directory=tmp_path,
        seconds=10.0,
    )


@pytest.fixture
def results() -> Results:
    """All of the plan, and a bound."""
    bound = Summary(
        requests=4500, art_per_1000=2.0, p50_seconds=0.01, p99_seconds=0.08, error_ratio=0.0
    )
    return Results(
        outcomes=[outcome(name, seed) for seed in (1, 2, 3) for name in NAMES],
        bounds={("three-classes", seed): {"a bound": bound} for seed in (1, 2, 3)},
    )


def test_figures_are_medians_and_ratios_are_paired(plan: Plan, results: Results) -> None:
    """ART is the middle seed's; the best peer is the best of those that were told nothing."""
    report = scenario_report(plan, results, plan.scenarios[0])
    ours = next(r for r in report.rows if r.name == "trimtab")
    assert ours.art_per_1000 == 8.0
    assert ours.ratio is not None
    assert ours.ratio.mean == pytest.approx(0.05, rel=0.02)  # the floor of 0.1 is in it
    assert report.best_peer == "least-conn-shared"
    assert report.art_to_best is not None
    assert report.art_to_best.mean == pytest.approx(0.1, rel=0.02)
    assert report.p99_to_best is not None
    assert report.p99_to_best.mean == pytest.approx(0.5)


def test_the_table_has_a_row_for_everything(plan: Plan, results: Results) -> None:
    """Balancers, bounds, what is missing and why, who was told more, and what is not valid."""
    results.outcomes = [o for o in results.outcomes if o.balancer != "haproxy-maxconn"]
    results.missing = {"haproxy-maxconn": "there is no haproxy: apt-get install haproxy"}
    results.problems.append("three-classes, trimtab, seed 2: not valid: late")
    text = tables(plan, results)
    assert "three classes on speeds 1:2:4, 80% load; 622 requests/s, 10 s, 3 seeds" in text
    row = next(line for line in text.splitlines() if "maxconn" in line)
    assert row.split()[-9:-7] == ["missing", "-"]
    assert "bound: a bound" in text
    assert "Trimtab to the best peer without hints (least-conn-shared): ART 0.10 [" in text
    said = notes(plan, results)
    assert "The first 2.5 s of a run warm up and are left out." in said
    assert "haproxy-maxconn is missing: there is no haproxy" in said
    assert "Trimtab, hold = auto (slots)" in said
    assert said.endswith("seed 2: not valid: late")


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(plan: Plan, results: Results, columns: int) -> None:
    """With shorter names first, then fewer columns, and a word on what was left out."""
    results.bounds = {
        key: {"shortest expected delay knowing speeds": by["a bound"]}
        for key, by in results.bounds.items()
    }
    text = tables(plan, results, columns)
    assert max(map(len, text.splitlines())) <= columns
    assert "ART/1000" in text
    assert "p99 ms" in text
    assert ("(no room for p50 ms, " in text) == (columns == 80)
    assert max(map(len, wrapped(notes(plan, results), columns).splitlines())) <= columns
    assert "p50 ms" in tables(plan, results)


def test_shares_are_of_each_server_or_of_the_extremes() -> None:
    """Twelve numbers would not fit."""
    assert shares_text((0.142, 0.286, 0.572)) == "14 29 57"
    assert shares_text([0.03] * 6 + [0.1, 0.12, 0.15, 0.15, 0.15, 0.15]) == "3 to 15"
    assert shares_text(()) == "-"


def test_markdown_has_what_the_documentation_needs(plan: Plan, results: Results) -> None:
    """Commit and command, the verdict, every row, and where we lose."""
    results.outcomes = [
        replace(o, commit="abc1234", art_per_1000=2.0 * o.seed)
        if o.balancer == "haproxy-maxconn"
        else replace(o, commit="abc1234")
        for o in results.outcomes
    ]
    text = markdown_of(plan, results)
    assert "commit abc1234;" in text
    assert "Trimtab's ART is lower in 2 of 3 comparisons" in text
    assert "| **Trimtab, hold = auto (told the slots)** | **8.0** | **0.05 [" in text
    assert "| *bound: a bound* | 2.0 |" in text
    lost = text.partition("### Where Trimtab loses in these")[2]
    assert (
        "three-classes: against HAProxy leastconn, maxconn = slots (told the slots): ART 1.9"
        in (lost)
    )
    assert lost.count("against") == 1


def test_markdown_of_several_scenarios_begins_with_all_of_them(
    plan: Plan, results: Results
) -> None:
    """A row a balancer, a column a scenario, missing runs as dashes."""
    plan = replace(plan, scenarios=[find("three-classes"), find("equal")])
    results.outcomes += [outcome("trimtab", 1, scenario="equal", art_per_1000=7.5)]
    text = markdown_of(plan, results)
    overview = text.partition("### ART per 1000 requests\n\n")[2]
    assert overview.startswith("| balancer | three-classes | equal |\n")
    assert "\n| nginx least_conn, one group | 80.0 | - |\n" in overview
    assert "\n| **Trimtab, hold = auto (told the slots)** | **8.0** | **7.5** |\n" in overview


def test_a_loss_is_a_ratio_whose_interval_leaves_one_out(plan: Plan, results: Results) -> None:
    """Noise is no loss, nor a win; one seed has no interval, so its ratio decides."""
    noisy = {1: 100.0, 2: 1.0, 3: 4.0}
    results.outcomes = [
        replace(o, art_per_1000=noisy[o.seed]) if o.balancer == "least-conn" else o
        for o in results.outcomes
    ]
    verdicts = {c.other: c.art_verdict for c in compare(plan, results)}
    assert verdicts == {
        "least-conn": "alike",
        "least-conn-shared": "better",
        "haproxy-maxconn": "better",
    }
    results.outcomes = [o for o in results.outcomes if o.seed == 2]
    assert {c.other: c.art_verdict for c in compare(plan, results)}["least-conn"] == "worse"


def test_more_errors_are_a_loss_too(plan: Plan, results: Results) -> None:
    """Also with less tardiness."""
    results.outcomes = [
        replace(o, error_ratio=0.01) if o.balancer == "trimtab" else o for o in results.outcomes
    ]
    found = lost(compare(plan, results))
    assert len(found) == 3
    assert str(found[0]).endswith("errors +1.00%")


def test_the_json_holds_everything_and_no_nan(plan: Plan, results: Results) -> None:
    """Rows, bounds, outcomes, and where it ran."""
    path = plan.directory / "results.json"
    write_json(plan, results, path)
    data = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert len(data["outcomes"]) == 12
    assert data["seeds"] == [1, 2, 3]
    assert data["cores"] >= 1
    of_scenario = data["scenarios"]["three-classes"]
    assert [r["name"] for r in of_scenario["rows"]] == NAMES
    assert of_scenario["bounds"][0]["p999_seconds"] is None
    assert of_scenario["requests_per_second"] == pytest.approx(622.2, abs=0.1)


def test_an_outcome_survives_its_file(tmp_path: Path) -> None:
    """What was written is read; what is no outcome is refused with its path."""
    path = tmp_path / "x.json"
    made = outcome("trimtab", 1, valid=False, invalid_because=("late",))
    write(made, path)
    assert read(path) == made
    for text in ("", "[]", '{"format": 0}', '{"format": 2, "seed": 1}'):
        path.write_text(text)
        with pytest.raises(StateError, match=r"x\.json: not the outcome of a run"):
            read(path)


def test_the_warm_up_is_at_most_a_quarter() -> None:
    """5 s of 60 s, 2 s of 8 s."""
    scenario = find("three-classes")
    assert warm_up_seconds(scenario, 60.0) == 5.0
    assert warm_up_seconds(scenario, 8.0) == 2.0


def test_names_of_balancers_are_known_and_unique() -> None:
    """The short set and the peers are balancers; peers were told nothing."""
    names = [b.name for b in BALANCERS]
    assert len(set(names)) == len(names)
    assert set(QUICK) <= set(names)
    assert all(not b.hint for b in chosen(PEERS))
    with pytest.raises(ConfigError, match="no balancer 'apache'; there are round-robin, "):
        chosen(["apache"])


def test_least_time_runs_on_the_nginx_that_was_named() -> None:
    """The other rows stay on the system's; an old one is missing, not a failure."""
    named = {b.name: b for b in chosen(["least-conn", "least-time"], nginx="/opt/nginx")}
    assert named["least-time"].binary == "/opt/nginx"
    assert named["least-conn"].binary == "nginx"
    assert "/opt/nginx" in named["least-time"].missing()


def test_weights_of_a_site_are_slots_times_speed(tmp_path: Path) -> None:
    """In hundredths of the weakest server, and in the configuration only on request."""
    site = Site(
        scenario=find("speeds"),
        servers=("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
        listen="127.0.0.1:4",
        internal_listen="127.0.0.1:5",
        policy_listen="127.0.0.1:6",
        admin_listen="127.0.0.1:7",
        directory=tmp_path,
        workers=2,
    )
    assert site.config(hold="on").upstreams[0].hold == "on"
    assert site.config().nginx.worker_processes == 2
    assert site.weights() == [100, 200, 400]
    peers = site.config(weighted=True, slots=True).upstreams[0].peers
    assert [(p.weight, p.slots) for p in peers] == [(100, 2), (200, 2), (400, 2)]
    assert [(p.weight, p.slots) for p in site.config().upstreams[0].peers] == [(1, None)] * 3


def test_every_balancer_can_be_asked_whether_it_is_there() -> None:
    """`missing` answers with a sentence or nothing, and never raises."""
    assert {type(b.missing()) for b in BALANCERS} == {str}
    assert Running is not None
