"""What learning adds on live nginx: the arms of `trimtab bench learning`, as rows of the benchmark.

    least-conn   nginx's own, a group a class
    heuristic    the policy server without learning: estimates only, every W = 1
    learned      a trained file, believed: what the policy would use is in force from the start
    proving      the same file, which must win its trial first, as the server does it by default
    poisoned     the searched weights turned round, and praised, on trial
    unhurried    as proving, with all times at their defaults: for runs of a quarter of an hour

Each but the first also with requests held in nginx ("-held"). A trained file names servers by
address, so it is written anew for the addresses that the emulated ones have in a run. Decisions
are of some seconds in place of a minute, so that a trial fits into a run, but for the last.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from trimtab.bench.balancers.base import Balancer, Running, Site
from trimtab.bench.balancers.hook import Hook
from trimtab.bench.balancers.known import chosen
from trimtab.config import Learning
from trimtab.errors import StateError
from trimtab.learn import trained
from trimtab.training.comparison import poisoned

__all__ = [
    "ARMS",
    "BASE",
    "UNHURRIED",
    "Taught",
    "arms",
    "file_stem",
    "readdressed",
    "unhurried_arms",
]

ARMS: Final = ("heuristic", "learned", "proving", "poisoned")
UNHURRIED: Final = "unhurried"
BASE: Final = "heuristic"
HELD: Final = "-held"

# A trial takes three neutral windows and three switchbacks at least: half a minute.
DECISION_SECONDS: Final = 3.0

# The states come from the file, and the deadlines are given.
OBSERVE_SECONDS: Final = 3.0


def file_stem(scenario: str, hold: str) -> str:
    """How the name of a scenario's trained file begins: one trained with requests that wait is
    another."""
    return scenario if hold == "off" else scenario + HELD


def arms(files: Path) -> list[Balancer]:
    """All of them; a scenario's trained file is STEM-table.json in `files`, see `file_stem`."""
    ours = [Taught(arm=arm, hold=hold, files=files) for hold in ("off", "on") for arm in ARMS]
    return [*chosen(["least-conn"]), *ours]


def unhurried_arms(files: Path) -> list[Balancer]:
    """Those that say how long it takes from a cold start to a promoted profile: see `UNHURRIED`;
    named only, as a short run says nothing of them."""
    return [Taught(arm=UNHURRIED, hold=hold, files=files) for hold in ("off", "on")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Taught:
    """One arm; a `Balancer`. Slots are given, disciplines and affinities are not."""

    arm: str
    hold: str
    files: Path
    hint: str = "slots"

    @property
    def name(self) -> str:
        """As the command line calls it."""
        return self.arm if self.hold == "off" else self.arm + HELD

    @property
    def label(self) -> str:
        """As tables call it."""
        return f"{self.arm}, hold = {self.hold}"

    def missing(self) -> str:
        """Why it cannot run here."""
        return Hook(name=self.name, label=self.label).missing()

    def start(self, site: Site) -> Running:
        """Start the policy server with its trained file, then nginx."""
        learning = Learning(enabled=False)
        if self.arm != BASE:
            path = site.directory / "trained.json"
            given = self.files / f"{file_stem(site.scenario.name, self.hold)}-table.json"
            trained.write(path, _body(given, site, poison=self.arm == "poisoned"))
            learning = Learning(trained=path)
        if self.arm not in (BASE, UNHURRIED):
            learning = replace(
                learning,
                prove=self.arm != "learned",
                observe_seconds=OBSERVE_SECONDS,
                decision_seconds=DECISION_SECONDS,
                exploration_ratio=0.0,
            )
        hook = Hook(name=self.name, label=self.label, hold=self.hold, learning=learning)
        return hook.start(site)


def _body(path: Path, site: Site, *, poison: bool) -> dict[str, Any]:
    """The body of the trained file for this site's servers. Raises StateError."""
    kept, _ = trained.read(path)
    try:
        theirs = list(dict.fromkeys(a for peers in kept["upstreams"].values() for a in peers))
        if len(theirs) != len(site.servers):
            raise ValueError(f"{len(theirs)} servers in place of {len(site.servers)}")
        addresses = dict(zip(theirs, site.servers, strict=True))
        body: dict[str, Any] = readdressed(kept, addresses)
        if poison:
            enemy = poisoned(trained.parse(body))
            inverse = [
                {"name": p.name, "summary": p.summary, "weights": p.factors} for p in enemy.profiles
            ]
            policy = body["policy"] and body["policy"] | {"table": dict(enemy.table)}
            body |= {"profiles": inverse, "policy": policy}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(f"{path}: of another shape: {error}") from None
    # What a resumed training needs is of the old addresses, and of no use here.
    body |= {"training": {}, "network": None}
    return body


def readdressed(value: Any, addresses: Mapping[str, str]) -> Any:
    """A JSON-able value with every address in it, alone or at the end of a feature's name, replaced
    by another."""
    if isinstance(value, str):
        head, slash, tail = value.rpartition("/")
        return head + slash + addresses[tail] if tail in addresses else value
    if isinstance(value, Mapping):
        return {readdressed(k, addresses): readdressed(v, addresses) for k, v in value.items()}
    if isinstance(value, list):
        return [readdressed(v, addresses) for v in value]
    return value
