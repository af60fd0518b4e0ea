"""The guard: nothing that was learned reaches a balancer unchecked.

What always holds of the weights that it admits, whatever is proposed:

1. every configured upstream and peer is in them, and no other;
2. all numbers are finite and positive; W in [1/3, 3], rates and affinities in [1/20, 20];
3. W changes by at most a factor of 1.5 a call; what is pinned or drained is what the operator said;
4. the generation rises with every change, and only then; a change below 2% is none;
5. a proposal with a number that is not finite and positive is refused whole, and what is in force
   stays in force;
6. in shadow no learned W comes into force: W goes to 1, but for pins, and what it would have been
   is kept to be shown.

Which profile may be in force is for its `trials` to say. It decides nothing by itself and does no
I/O; generations come from the store.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from trimtab.config import Config, Peer
from trimtab.discipline import SHARING
from trimtab.errors import ConfigError
from trimtab.learn.actions import NEUTRAL, PROFILES, WEIGHT_BOUND
from trimtab.model import PeerWeight, UpstreamWeights, Weights
from trimtab.trials import Trials

__all__ = ["Guard", "Verdict"]

# A server twenty times slower than the mean gets next to nothing either way; beyond it an estimate
# is more likely wrong than right, and the floor keeps the server explored.
RATE_BOUND: Final = 20.0
AFFINITY_BOUND: Final = 20.0

# From 10 µs, less than a proxy adds, to a day, the longest deadline of a configuration.
TIME_BOUNDS_SECONDS: Final = (1e-5, 86400.0)

# From neutral to the bound in three calls: a balancer sees it coming, a wrong step is small.
MOST_STEP: Final = 1.5

# Estimates jitter by this much; generations should not.
MATERIAL_RATIO: Final = 0.02

# Slots are whole numbers in the configuration, at most this.
MOST_SLOTS: Final = 65535.0


class _RefusedError(Exception):
    """A number in a proposal that no bound can mend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a proposal.

    weights: in force from now on; the very object that was in force when nothing changed.
    changed: whether it is a new generation. refused: why the proposal was not taken, or "".
    """

    weights: Weights
    changed: bool
    refused: str = ""


class Guard:
    """Admits proposals; `trials` admits profiles.

    Args:
        config: upstreams and peers; what a proposal leaves out is filled from it.
        epoch: of all weights that it admits.
        next_generation: gives a larger number each time. Raises TrimtabError when it cannot; the
            weights in force then stay.
    """

    def __init__(self, config: Config, epoch: int, next_generation: Callable[[], int]) -> None:
        self._upstreams = config.upstreams
        self._pairs = {(u.name, p.address) for u in config.upstreams for p in u.peers}
        self._epoch = epoch
        self._next = next_generation
        learning = config.learning
        self.trials = Trials(
            PROFILES[NEUTRAL].name,
            exploration_ratio=learning.exploration_ratio,
            holdback_ratio=learning.holdback_ratio,
            prove=learning.prove,
        )
        # (upstream, address) -> W, and addresses: set by the operator, kept with the state.
        self.pins: dict[tuple[str, str], float] = {}
        self.drains: set[str] = set()
        # Decide and tell, never apply a learned W; set by the operator, kept with the state.
        self.shadow = False
        self._withheld: dict[str, dict[str, float]] = {}  # upstream -> address -> W, in shadow

    # Weights

    def admit(self, proposal: Weights | None, in_force: Weights | None, reason: str) -> Verdict:
        """Check a proposal against the bounds and what is in force.

        None proposes nothing: what is in force is held, and pins and drains are applied to it.
        Without weights in force the configured ones are the start. Raises TrimtabError when a
        change needs a generation and there is none to be had.
        """
        refused = ""
        try:
            checked = self._checked(proposal, in_force)
        except _RefusedError as error:
            refused = str(error)
            checked = self._checked(None, in_force)
        if in_force is not None and not _material(in_force.upstreams, checked):
            return Verdict(weights=in_force, changed=False, refused=refused)
        why = reason if not refused else f"proposal refused: {refused}"
        weights = Weights(upstreams=checked, epoch=self._epoch, generation=self._next(), reason=why)
        return Verdict(weights=weights, changed=True, refused=refused)

    def _checked(
        self, proposal: Weights | None, in_force: Weights | None
    ) -> dict[str, UpstreamWeights]:
        checked: dict[str, UpstreamWeights] = {}
        self._withheld = {}
        for upstream in self._upstreams:
            name = upstream.name
            held = in_force.upstreams.get(name) if in_force else None
            asked = (proposal.upstreams.get(name) if proposal else None) or held
            peers: dict[str, PeerWeight] = {}
            for peer in upstream.peers:
                address = peer.address
                now = held.peers.get(address) if held else None
                then = (asked.peers.get(address) if asked else None) or now
                peers[address] = self._peer(name, peer, then, now)
            checked[name] = UpstreamWeights(
                peers=peers,
                deadline_seconds=_time(
                    f"deadline of {name}",
                    upstream.deadline_seconds or (asked.deadline_seconds if asked else None),
                ),
                service_time_seconds=_time(
                    f"service time of {name}", asked.service_time_seconds if asked else None
                ),
            )
        return checked

    def _peer(
        self,
        name: str,
        peer: Peer,
        then: PeerWeight | None,
        now: PeerWeight | None,
    ) -> PeerWeight:
        address = peer.address
        where = f"of {address} in {name}"
        then = then or PeerWeight()
        weight = _bounded(f"weight {where}", then.weight, WEIGHT_BOUND)
        if self.shadow:
            self._withheld.setdefault(name, {})[address] = weight
            weight = 1.0
        before = now.weight if now else 1.0
        weight = min(max(weight, before / MOST_STEP), before * MOST_STEP)
        # A pin that was lifted may have left W outside of the bound; the bound comes first.
        weight = min(max(weight, 1 / WEIGHT_BOUND), WEIGHT_BOUND)
        pinned = self.pins.get((name, address))
        slots = float(peer.slots) if peer.slots is not None else then.slots
        if slots is not None and not (math.isfinite(slots) and slots > 0):
            raise _RefusedError(f"slots {where} are {slots!r}")
        return PeerWeight(
            weight=weight if pinned is None else pinned,
            affinity=_bounded(f"affinity {where}", then.affinity, AFFINITY_BOUND),
            rate=_bounded(f"rate {where}", then.rate, RATE_BOUND),
            slots=None if slots is None else min(max(float(slots), 1.0), MOST_SLOTS),
            drain=address in self.drains,
            sharing=then.sharing if peer.discipline is None else peer.discipline == SHARING,
        )

    # The operator

    def pin(self, upstream: str, address: str, weight: float | None) -> None:
        """Fix W of a pair; None lifts it. Raises ConfigError for an unknown pair or a weight
        outside of [1/3, 3]."""
        if (upstream, address) not in self._pairs:
            raise ConfigError(f"{address!r} is no configured peer of {upstream!r}")
        if weight is None:
            self.pins.pop((upstream, address), None)
            return
        if not 1 / WEIGHT_BOUND <= weight <= WEIGHT_BOUND:
            raise ConfigError(
                f"a weight of {weight!r} for {address} in {upstream}: it must be from 1/3 to 3"
            )
        self.pins[upstream, address] = float(weight)

    def drain(self, address: str, on: bool) -> None:
        """No new requests to a server, or requests again. Raises ConfigError for an unknown one."""
        if address not in {a for _, a in self._pairs}:
            raise ConfigError(f"{address!r} is no configured peer of any upstream")
        (self.drains.add if on else self.drains.discard)(address)

    @property
    def withheld(self) -> dict[str, dict[str, float]]:
        """In shadow: the W that the last proposal had, by upstream and address. Else empty."""
        return {name: dict(peers) for name, peers in self._withheld.items()}

    # State

    def status(self) -> dict[str, Any]:
        """Pins, drains, shadow, and what `Trials.status` says, for JSON."""
        return {
            **self.trials.status(),
            "pins": [[name, address, w] for (name, address), w in sorted(self.pins.items())],
            "drains": sorted(self.drains),
            "shadow": self.shadow,
            "withheld": self.withheld,
        }

    def to_state(self) -> dict[str, Any]:
        """As JSON-able data."""
        return {
            "trials": self.trials.to_state(),
            "pins": [[name, address, w] for (name, address), w in self.pins.items()],
            "drains": sorted(self.drains),
            "shadow": self.shadow,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what `to_state` gave. Raises KeyError, TypeError or ValueError for another
        shape, and has changed nothing then."""
        pins = {(str(n), str(a)): float(w) for n, a, w in state["pins"]}
        for pin in pins.values():
            if not 1 / WEIGHT_BOUND <= pin <= WEIGHT_BOUND:
                raise ValueError(f"a pin of {pin!r}")
        drains = {str(a) for a in state["drains"]}
        # These two are absent in states of version 0.1.
        shadow = bool(state.get("shadow", False))
        if "trials" in state:
            self.trials.restore(state["trials"])
        self.pins = {k: w for k, w in pins.items() if k in self._pairs}
        self.drains = drains & {address for _, address in self._pairs}
        self.shadow = shadow


def _bounded(what: str, value: float, bound: float) -> float:
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise _RefusedError(f"{what} is {value!r}")
    return min(max(float(value), 1 / bound), bound)


def _time(what: str, value: float | None) -> float | None:
    if value is None:
        return None
    if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
        raise _RefusedError(f"{what} is {value!r}")
    return min(max(float(value), TIME_BOUNDS_SECONDS[0]), TIME_BOUNDS_SECONDS[1])


def _differs(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return before is not after
    return abs(after - before) > MATERIAL_RATIO * abs(before)


def _material(before: Mapping[str, UpstreamWeights], after: Mapping[str, UpstreamWeights]) -> bool:
    """Whether anything differs by more than 2%, or at all where it is no measurement."""
    if before.keys() != after.keys():
        return True
    for name, now in after.items():
        was = before[name]
        if (
            was.peers.keys() != now.peers.keys()
            or _differs(was.deadline_seconds, now.deadline_seconds)
            or _differs(was.service_time_seconds, now.service_time_seconds)
        ):
            return True
        for address, peer in now.peers.items():
            old = was.peers[address]
            if (
                old.drain != peer.drain
                or old.slots != peer.slots
                or old.sharing != peer.sharing
                or _differs(old.weight, peer.weight)
                or _differs(old.affinity, peer.affinity)
                or _differs(old.rate, peer.rate)
            ):
                return True
    return False
