"""Fitting the twin: what comes back from statistics that the twin itself made."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from trimtab import assembly, config
from trimtab.cli import main
from trimtab.errors import ConfigError, StateError
from trimtab.training.setting import configuration, fitted
from trimtab.twin.fit import from_status, from_windows
from trimtab.twin.workload import Requests, Servers, poisson
from trimtab.twin.world import World
from trimtab.window import Meter

ADDRESSES = ("s1:1", "s2:1", "s3:1")
SPEEDS = np.array([1.0, 2.0, 4.0])
SERVICE = {"a": 0.015, "b": 0.06}
CONFIG = "[learning]\nobserve_seconds = 20.0\n" + "".join(
    f'[[upstream]]\nname = "{name}"\nlocation = "/{name}"\ndeadline_seconds = {4 * v}\n'
    + "".join(f'[[upstream.peer]]\naddress = "{a}"\nslots = 2\n' for a in ADDRESSES)
    for name, v in SERVICE.items()
)


def live(load: float, seconds: float, seed: int = 1) -> tuple[World, Requests]:
    """A world at that share of its capacity; class b is twice as slow on the first server."""
    servers = replace(
        Servers.alike(3, 2, classes=2),
        speed=SPEEDS,
        affinity=np.array([[1.0, 2.0], [1.0, 1.0], [1.0, 1.0]]),
    )
    rate = load * 14 / (0.7 * 0.015 + 0.3 * 0.06)
    requests = poisson(
        round(rate * seconds), rate, shares=(0.7, 0.3), mean_work=(0.015, 0.06),
        deadline=(0.06, 0.24), seed=seed,
    )  # fmt: skip
    world = World(
        servers, requests, upstreams=list(SERVICE), addresses=ADDRESSES,
        deadlines={n: 4 * v for n, v in SERVICE.items()}, seed=seed,
    )  # fmt: skip
    return world, requests


def test_status_gives_back_servers_and_load(tmp_path: Path) -> None:
    """From the status of the production controller after a minute: arrivals within 10%, slots as
    configured, and where a class had traffic its time on a server within 20%."""
    world, requests = live(0.5, 60.0)
    brain = assembly.build(config.parse(CONFIG), world, world, tmp_path, lambda: world.now)
    while world.now < 60:
        world.advance(1.0)
        brain.step()
    status = json.loads(json.dumps(brain.status()))
    fit = from_status(status)
    assert dict(fit.slots) == dict.fromkeys(ADDRESSES, 2)
    for j, of in enumerate(fit.classes):
        rate = (requests.kind == j).sum() / requests.at[-1]
        assert of.requests_per_second == pytest.approx(rate, rel=0.1)
        assert of.deadline_seconds == 4 * SERVICE[of.name]
        for i, address in enumerate(ADDRESSES):
            if (of.name, i) == ("b", 0):
                continue  # twice as slow: the balancer hardly ever sends it there
            true = SERVICE[of.name] / SPEEDS[i]
            found = of.service_seconds * of.affinity[address] / fit.rates[address]
            assert found == pytest.approx(true, rel=0.2)
    (tmp_path / "status.json").write_text(json.dumps(status))
    output = tmp_path / "t.json"
    arguments = ["--seconds", "60", "--seeds", "1", "--evaluations", "0", "--output", str(output)]
    assert main(["train", "--from", str(tmp_path / "status.json"), *arguments]) == 0
    upstreams = json.loads(output.read_text())["body"]["upstreams"]
    assert upstreams == {name: list(ADDRESSES) for name in SERVICE}


def test_windows_of_light_load_give_service_times() -> None:
    """Without the estimator's figures, mean response times less the mean wait count."""
    world, _ = live(0.1, 120.0)
    meter, windows = Meter(), []
    while world.now < 120:
        world.advance(2.0)
        bare = replace(world.read()[0], addresses={})
        window = meter.take(bare)
        windows += [window] if window else []
    fit = from_windows(windows, dict.fromkeys(ADDRESSES, 2), dict.fromkeys(SERVICE))
    for of in fit.classes:
        assert of.deadline_seconds == pytest.approx(3 * of.service_seconds)
        for i, address in enumerate(ADDRESSES):
            if (of.name, i) == ("b", 0):
                continue
            found = of.service_seconds * of.affinity.get(address, 1.0) / fit.rates[address]
            assert found == pytest.approx(SERVICE[of.name] / SPEEDS[i], rel=0.4)


def test_collected_file_trains_with_a_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`trimtab train --from` takes a collector's file; the configuration says slots."""
    world, _ = live(0.2, 60.0)
    lines = []
    while world.now < 60:
        world.advance(2.0)
        groups = {
            name: {
                a: {
                    "requestCounter": p.requests,
                    "responseMsecCounter": round(1000 * p.response_time_seconds),
                    "inFlight": p.in_flight,
                }
                for a, p in peers.items()
            }
            for name, peers in world.read()[0].pairs.items()
        }
        lines.append(json.dumps({"time": world.now, **groups}) + "\n")
    (tmp_path / "stats.json").write_text("".join(lines))
    (tmp_path / "trimtab.toml").write_text(CONFIG)
    output = tmp_path / "t.json"
    short = ["--seconds", "60", "--seeds", "1", "--evaluations", "0", "--output", str(output)]
    statistics = ["train", "--from", str(tmp_path / "stats.json"), *short]
    assert main([*statistics, "--config", str(tmp_path / "trimtab.toml")]) == 0
    capsys.readouterr()
    assert main(statistics) == 2
    assert "give --config" in capsys.readouterr().err
    (tmp_path / "trimtab.toml").write_text(CONFIG.replace("slots = 2\n", ""))
    assert main([*statistics, "--config", str(tmp_path / "trimtab.toml")]) == 1
    assert "give slots for s1:1, s2:1, s3:1" in capsys.readouterr().err


def test_statistics_of_other_servers_are_refused() -> None:
    """A configuration with a server that the statistics do not know cannot be trained for."""
    world, _ = live(0.2, 30.0)
    meter, windows = Meter(), []
    for _ in range(15):
        world.advance(2.0)
        window = meter.take(world.read()[0])
        windows += [window] if window else []
    fit = from_windows(windows, dict.fromkeys(ADDRESSES, 2), dict.fromkeys(SERVICE))
    with pytest.raises(ConfigError, match="knows nothing of s9:1; it has s1:1"):
        fitted(fit, ["s1:1", "s9:1"], "stats.json")
    scenario = fitted(fit, ADDRESSES, "stats.json")
    made = configuration(scenario, None, ADDRESSES)
    assert [p.address for p in made.upstreams[0].peers] == list(ADDRESSES)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({}, "not the status of a policy server"),
        ({"estimates": {}, "upstreams": {}}, "no upstreams"),
        ({"estimates": {"arrivals_per_second": {}}, "upstreams": {"a": {}}}, "not the status"),
        (
            {
                "estimates": {"arrivals_per_second": {}},
                "upstreams": {"a": {"service_time_seconds": None}},
            },
            "nothing is known of the service times of a",
        ),
    ],
)
def test_status_without_what_is_needed_is_refused(status, says: str) -> None:
    """Each lack is named; nothing is invented for it."""
    with pytest.raises(StateError, match=says):
        from_status(status)
    with pytest.raises(StateError, match="no traffic"):
        from_windows([], {"s1:1": 1}, {"a": None})
