"""Configurations and weights for tests of the brain."""

from collections.abc import Mapping

from trimtab import config
from trimtab.config import Config
from trimtab.model import PeerWeight, UpstreamWeights, Weights


def configuration(
    classes: Mapping[str, str] | None = None,
    peers: Mapping[str, int | None] | None = None,
    learning: str = "",
) -> Config:
    """Upstreams with the given extra TOML lines, each with all the peers (address → slots)."""
    text = f"[learning]\n{learning}\n"
    for name, extra in (classes or {"a": "", "b": ""}).items():
        text += f'[[upstream]]\nname = "{name}"\nlocation = "/{name}"\n{extra}\n'
        for address, slots in (peers or {"s1:1": None, "s2:1": None, "s3:1": None}).items():
            text += f'[[upstream.peer]]\naddress = "{address}"\n'
            text += "" if slots is None else f"slots = {slots}\n"
    return config.parse(text)


def proposed(of: Config, deadline: float | None = 0.1, **peer: float) -> Weights:
    """A proposal with the same numbers for every pair."""
    return Weights(
        upstreams={
            u.name: UpstreamWeights(
                peers={p.address: PeerWeight(**peer) for p in u.peers},
                deadline_seconds=deadline,
                service_time_seconds=0.01,
            )
            for u in of.upstreams
        }
    )
