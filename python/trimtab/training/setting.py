"""What is trained for: a scenario and a configuration that belong together."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from trimtab.config import Config, Learning, Peer, Upstream
from trimtab.demo.scenario import Class, Load, Scenario, Server
from trimtab.errors import ConfigError
from trimtab.twin.fit import Fit

__all__ = [
    "addresses_of",
    "classes_of",
    "configuration",
    "fitted",
    "loaded",
    "upstreams_in_order",
    "upstreams_of",
]

FIRST_PORT: Final = 9001

# Beyond this share of what the servers can carry every choice is a bad one.
MOST_LOAD: Final = 0.95


def configuration(
    scenario: Scenario,
    given: Config | None = None,
    addresses: tuple[str, ...] = (),
    *,
    hold: str = "off",
) -> Config:
    """The configuration to train for.

    Without one, the scenario's servers have the addresses given here, else 127.0.0.1:9001 and up,
    and its classes are the upstreams, with this `hold`.
    With one, upstreams are matched to the classes by name, else by their order, and the servers by
    the order in which their addresses first appear; what it leaves open (deadlines) is the
    scenario's. Raises ConfigError when they cannot be matched.
    """
    if given is None:
        count = len(scenario.servers)
        names = addresses or tuple(f"127.0.0.1:{FIRST_PORT + i}" for i in range(count))
        peers = tuple(
            Peer(address=a, slots=s.slots) for a, s in zip(names, scenario.servers, strict=True)
        )
        return Config(
            learning=Learning(),
            upstreams=tuple(
                Upstream(
                    name=c.name,
                    location=c.path,
                    priority=c.priority,
                    deadline_seconds=c.deadline_seconds,
                    hold=hold,
                    peers=peers,
                )
                for c in scenario.classes
            ),
            path=f"scenario {scenario.name}",
        )
    servers = addresses_of(given)
    if len(servers) != len(scenario.servers) or len(given.upstreams) != len(scenario.classes):
        raise ConfigError(
            f"{given.path} has {len(given.upstreams)} upstreams and {len(servers)} servers, the "
            f"scenario {scenario.name} {len(scenario.classes)} classes and "
            f"{len(scenario.servers)} servers; write a scenario of your servers, see "
            "docs/emulator.md"
        )
    classes = dict(zip([u.name for u in given.upstreams], classes_of(scenario, given), strict=True))
    return replace(
        given,
        upstreams=tuple(
            replace(u, deadline_seconds=u.deadline_seconds or classes[u.name].deadline_seconds)
            for u in given.upstreams
        ),
    )


def addresses_of(config: Config) -> list[str]:
    """The servers, each once, in the order in which they first appear."""
    return list(dict.fromkeys(p.address for u in config.upstreams for p in u.peers))


def classes_of(scenario: Scenario, config: Config) -> list[Class]:
    """The classes of the scenario in the order of the upstreams."""
    by_their_name = {c.name: c for c in scenario.classes}
    names = [u.name for u in config.upstreams]
    if set(names) == set(by_their_name):
        return [by_their_name[n] for n in names]
    return list(scenario.classes)


def upstreams_of(config: Config) -> dict[str, list[str]]:
    """Upstream -> addresses, as the trained file says them."""
    return {u.name: [p.address for p in u.peers] for u in config.upstreams}


def upstreams_in_order(scenario: Scenario, config: Config) -> list[str]:
    """The upstreams' names in the order of the scenario's classes."""
    order = [c.name for c in classes_of(scenario, config)]
    return [config.upstreams[order.index(c.name)].name for c in scenario.classes]


def fitted(fit: Fit, addresses: Sequence[str], name: str) -> Scenario:
    """The scenario of a live system, its servers in the order of `addresses`, under its own name.
    Raises ConfigError when the statistics lack one of them."""
    missing = [a for a in addresses if a not in fit.rates]
    if missing:
        raise ConfigError(
            f"{name} knows nothing of {', '.join(missing)}; it has {', '.join(fit.rates)}"
        )
    return Scenario(
        name=name,
        path=name,
        description="fitted to statistics",
        duration_seconds=60.0,
        warm_up_seconds=0.0,
        load=Load(),
        servers=tuple(
            Server(
                slots=fit.slots[a],
                speed=fit.rates[a],
                affinity={c.name: c.affinity.get(a, 1.0) for c in fit.classes},
            )
            for a in addresses
        ),
        classes=tuple(
            Class(
                name=c.name,
                requests_per_second=c.requests_per_second,
                service_seconds=c.service_seconds,
                deadline_seconds=c.deadline_seconds,
                path=f"/{c.name}",
            )
            for c in fit.classes
        ),
        events=(),
    )


def loaded(scenario: Scenario, factor: float) -> Scenario:
    """The scenario at so much of its load, but not beyond what its servers carry."""
    if factor == 1.0:
        return scenario
    capacity = scenario.capacity_per_second
    rate = scenario.requests_per_second
    wanted = max(min(rate * factor, MOST_LOAD * capacity), min(rate, rate * factor))
    load: Load = replace(scenario.load, fraction=None, requests_per_second=wanted)
    shares = scenario.shares
    classes = tuple(
        replace(c, share=float(share), requests_per_second=None)
        for c, share in zip(scenario.classes, shares, strict=True)
    )
    return replace(scenario, load=load, classes=classes)
