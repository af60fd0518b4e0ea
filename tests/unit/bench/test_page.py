"""Pictures and the HTML page, drawn from records that are made up."""

import base64
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from trimtab.bench import pictures
from trimtab.bench.balancers.known import chosen
from trimtab.bench.outcome import Outcome
from trimtab.bench.page import write_page
from trimtab.bench.runner import Plan, Results
from trimtab.bench.scenario import find, schedule
from trimtab.load.records import Ending


class Checked(HTMLParser):
    """Notes tags that are not closed, and every address that the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loaded: list[str] = []
        self.data: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag begins."""
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """A tag ends: it must be the one that is open."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text."""
        self.data.append(data)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """One balancer that ran on one seed, and one that is missing."""
    plan = Plan(
        scenarios=[find("three-classes")],
        balancers=chosen(["haproxy-maxconn", "trimtab"]),
        seeds=(1,),
        directory=tmp_path,
        seconds=5.0,
    )
    drawn = schedule(plan.scenarios[0], 1, 5.0)
    count = len(drawn)
    rng = np.random.default_rng(1)
    (tmp_path / "runs").mkdir()
    np.savez(
        tmp_path / "runs" / "three-classes.trimtab.1.npz",
        intended=drawn.times,
        end=drawn.times + rng.exponential(0.02, count),
        class_index=drawn.class_index,
        ending=np.where(rng.random(count) < 0.01, Ending.STATUS, Ending.OK),
        peer=rng.integers(-1, 3, count),
        peers=np.array(["127.0.0.1:3", "127.0.0.1:1", "127.0.0.1:2"]),
    )
    return plan


@pytest.fixture
def results() -> Results:
    """What belongs to the plan."""
    outcome = Outcome(
        scenario="three-classes",
        balancer="trimtab",
        seed=1,
        seconds=5.0,
        warm_up_seconds=1.25,
        requests=2300,
        art_per_1000=4.0,
        p50_seconds=0.01,
        p99_seconds=0.1,
        p999_seconds=0.3,
        error_ratio=0.01,
        goodput_per_second=600.0,
        shares={"server 1": 0.2, "server 2": 0.3, "server 3": 0.5},
        classes={},
        cpu_seconds_per_request=50e-6,
        send_lag_p99_seconds=0.001,
        lateness_p99_seconds=0.001,
        valid=True,
    )
    return Results(outcomes=[outcome], missing={"haproxy-maxconn": "no <b>haproxy</b> & no remedy"})


@pytest.mark.skipif(not pictures.available(), reason="matplotlib is not installed")
def test_a_picture_of_every_scenario_that_ran(plan: Plan, results: Results) -> None:
    """A PNG file; nothing for a scenario without runs."""
    path = pictures.draw(plan, results, plan.scenarios[0])
    assert path is not None
    assert path.read_bytes().startswith(b"\x89PNG")
    assert pictures.draw(plan, results, find("equal")) is None


def test_the_page_is_whole_and_loads_nothing(plan: Plan, results: Results, tmp_path: Path) -> None:
    """Tags match, pictures are inside, what came from elsewhere is escaped."""
    image = tmp_path / "x.png"
    image.write_bytes(b"\x89PNG not really")
    path = tmp_path / "report.html"
    write_page(plan, results, {"three-classes": image}, path)
    page = Checked()
    page.feed(path.read_text(encoding="utf-8"))
    assert page.open == []
    inside = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    assert page.loaded == ["#three-classes", inside]
    text = "".join(page.data)
    assert "no <b>haproxy</b> & no remedy" in text
    assert "three classes on speeds 1:2:4, 80% load" in text
    assert "1.00%" in text
