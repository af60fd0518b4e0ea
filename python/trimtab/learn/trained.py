"""The trained file: what `trimtab train` found, and what the policy server starts from.

One JSON object {"format", "sha256", "body"}, the checksum over the body's canonical text; replaced
atomically; no pickle. The body:

    upstreams   {name: [address, ...]}: what it was trained for; the configuration must have these
    profiles    [{"name", "summary", "weights": {upstream: {address: W}}}], W in [1/3, 3]
    network     {"file", "sha256"} of a DQN's npz (`learn.network`) beside this file, or null
    policy      {"clusters", "table"}: as of `Clusters.to_state` and `QTable.to_state`, or null
    training    how it came about, for people and for going on: never read by the server

A file that fails its check, or is of other upstreams or peers, is refused: wrong weights for the
right names would look like a bad server.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from trimtab.config import Config
from trimtab.errors import StateError
from trimtab.learn.actions import LEVELS, PROFILES, Profile, searched
from trimtab.learn.clusters import Clusters
from trimtab.learn.network import Network, digest
from trimtab.learn.network import load as load_network
from trimtab.learn.qlearning import QTable

__all__ = ["Trained", "body_of", "load", "network_beside", "parse", "read", "replace", "write"]

FORMAT: Final = 1

# A thousand servers and 27 states are some megabytes; what is larger is not ours.
MOST_BYTES: Final = 64 * 1024 * 1024

# Counts of the twin stand for this many live ones at most: the least that proves an advantage over
# all states, so that a fifth of an hour of live windows outweighs what the twin got wrong.
MOST_VISITS: Final = 8

# What the twin does not model: a live balancer would leave every state by having bytes and
# connections at all.
UNMODELLED: Final = ("in_bytes_per_second/", "out_bytes_per_second/", "connections", "waiting")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What a trained file gives: further profiles, states, and the Q-table's data.

    `clusters` is None and `table` empty when only weights were searched, `network` None where no
    DQN was trained. `digest` names the file's content.
    """

    profiles: tuple[Profile, ...] = ()
    clusters: Clusters | None = None
    table: Mapping[str, Any] = field(default_factory=dict)
    network: Network | None = None
    digest: str = ""


def _text(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def body_of(
    upstreams: Mapping[str, Sequence[str]],
    profiles: Sequence[Profile],
    policy: Mapping[str, Any] | None,
    training: Mapping[str, Any],
    network: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The body of a file; `policy` as of `policy.Learned.to_state`, `network` as said above."""
    kept = None
    if policy and policy["clusters"]:
        clusters = dict(policy["clusters"])
        clusters["constants"] = {
            n: v for n, v in clusters["constants"].items() if not n.startswith(UNMODELLED)
        }
        table = policy["table"]
        kept = {
            "clusters": clusters,
            "table": {
                "rows": [[s, a, min(n, MOST_VISITS), *rest] for s, a, n, *rest in table["rows"]],
                "overall": [[a, min(n, MOST_VISITS), *rest] for a, n, *rest in table["overall"]],
            },
        }
    return {
        "upstreams": {name: list(addresses) for name, addresses in upstreams.items()},
        "profiles": [
            {
                "name": p.name,
                "summary": p.summary,
                "weights": {n: dict(peers) for n, peers in p.factors.items()},
            }
            for p in profiles
        ],
        "policy": kept,
        "network": dict(network) if network else None,
        "training": dict(training),
    }


def write(path: str | Path, body: Mapping[str, Any]) -> None:
    """Write the file; it is the old or the new one at any time. Raises StateError."""
    text = _text(body)
    whole = {
        "format": FORMAT,
        "sha256": digest(text.encode()),
        "body": json.loads(text),
    }
    replace(path, (json.dumps(whole, indent=1, allow_nan=False) + "\n").encode())


def replace(path: str | Path, data: bytes) -> None:
    """Write a file, atomically. Raises StateError."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StateError(f"{path}: cannot be written: {error.strerror}") from None


def read(path: str | Path) -> tuple[dict[str, Any], str]:
    """The body of a file and its checksum. Raises StateError for one that is missing or damaged."""
    path = Path(path)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise StateError(f"{path}: larger than {MOST_BYTES} bytes: not a trained file")
        whole = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StateError(f"{path}: no such file; `trimtab train` writes one") from None
    except OSError as error:
        raise StateError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise StateError(f"{path}: not a trained file (not JSON); {_AGAIN}") from None
    if not isinstance(whole, dict) or not {"format", "sha256", "body"} <= whole.keys():
        raise StateError(f"{path}: not a trained file; {_AGAIN}")
    if whole["format"] != FORMAT:
        raise StateError(
            f"{path}: format {whole['format']!r}, but this version reads {FORMAT}; {_AGAIN}"
        )
    body = whole["body"]
    try:
        found = digest(_text(body).encode())
    except ValueError:
        found = ""
    if found != whole["sha256"] or not isinstance(body, dict):
        raise StateError(f"{path}: damaged (its checksum does not fit); {_AGAIN}")
    return body, found


_AGAIN: Final = "make it anew with `trimtab train`"


def parse(body: Mapping[str, Any], content: str = "") -> Trained:
    """What a body gives. Raises KeyError, TypeError or ValueError for one of another shape."""
    profiles = []
    known = {p.name for p in (*PROFILES, LEVELS)}
    for entry in body["profiles"]:
        weights = {
            str(n): {str(a): float(w) for a, w in peers.items()}
            for n, peers in entry["weights"].items()
        }
        name = str(entry["name"])
        if name in known:
            raise ValueError(f"two profiles are called {name!r}")
        known.add(name)
        profiles.append(searched(name, str(entry["summary"]), weights))
    policy = body["policy"]
    if policy is None:
        return Trained(profiles=tuple(profiles), digest=content)
    clusters = Clusters.from_state(policy["clusters"])
    # What a table refuses, it refuses here and not when the server is up.
    QTable([p.name for p in (*PROFILES, *profiles)]).restore(policy["table"])
    return Trained(
        profiles=tuple(profiles), clusters=clusters, table=policy["table"], digest=content
    )


def load(path: str | Path, config: Config) -> Trained:
    """The trained file of a configuration. Raises StateError for one that is missing, damaged, or
    trained for other upstreams or peers."""
    body, content = read(path)
    try:
        theirs = {str(n): sorted(map(str, a)) for n, a in body["upstreams"].items()}
        trained = parse(body, content)
        if body["network"]:
            trained = dataclasses.replace(
                trained, network=network_beside(Path(path), body["network"])
            )
            actions = [p.name for p in (*PROFILES, *trained.profiles)]
            if trained.network and list(trained.network.actions) != actions:
                raise ValueError("the network has other actions than the profiles")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StateError(
            f"{path}: of another shape ({type(error).__name__}: {error}); {_AGAIN}"
        ) from None
    ours = {u.name: sorted(p.address for p in u.peers) for u in config.upstreams}
    if theirs.keys() != ours.keys():
        raise StateError(
            f"{path}: trained for the upstreams {', '.join(theirs)}, but {config.path} has "
            f"{', '.join(ours)}; {_FOR_THIS}"
        )
    for name, addresses in ours.items():
        if theirs[name] != addresses:
            raise StateError(
                f"{path}: trained for the peers {', '.join(theirs[name])} of {name}, but "
                f"{config.path} has {', '.join(addresses)}; {_FOR_THIS}"
            )
    return trained


def network_beside(path: Path, entry: Mapping[str, str]) -> Network:
    """The network beside a trained file, whose entry names it. Raises StateError or ValueError."""
    name = entry["file"]
    if name != Path(name).name:
        raise ValueError(f"the network's file {name!r} is not beside it")
    try:
        data = (path.parent / name).read_bytes()
    except OSError as error:
        raise StateError(
            f"{path.parent / name}: the network of {path.name} cannot be read: {error.strerror}"
        ) from None
    if digest(data) != entry["sha256"]:
        raise StateError(
            f"{path.parent / name}: not the network that {path.name} names (its checksum does not "
            f"fit); {_AGAIN}"
        )
    return load_network(data)


_FOR_THIS: Final = "train for this configuration: `trimtab train --config FILE`"
