"""A configuration to render, and reading what was rendered back."""

from pathlib import Path
from typing import Any

import crossplane

from trimtab.actuators.nginx_conf import Machine
from trimtab.config import Config, Nginx, Peer, Upstream
from trimtab.model import PeerWeight, UpstreamWeights, Weights

__all__ = ["CONFIG", "MACHINE", "PREFIX", "Tree", "found", "parsed", "shape", "weights"]

PREFIX = Path("/srv/trimtab")
MACHINE = Machine(
    load_modules=("/m/ndk_http_module.so", "/m/ngx_http_lua_module.so"),
    user=("www-data", "www-data"),
    lua_directory="/usr/share/trimtab/lua",
)
CONFIG = Config(
    path="trimtab.toml",
    nginx=Nginx(instance="edge-1"),
    upstreams=(
        Upstream(
            name="reads",
            location="/read",
            priority=2.0,
            timeout_seconds=1.5,
            peers=(Peer(address="10.0.0.1:80", slots=4), Peer(address="[2001:db8::1]:80")),
        ),
        Upstream(
            name="writes",
            location="/write",
            deadline_seconds=0.25,
            retry_non_idempotent=True,
            peers=(Peer(address="10.0.0.1:80", slots=4, weight=3), Peer(address="unix:/run/b")),
        ),
    ),
)


def weights(**peers: PeerWeight) -> Weights:
    """Learned weights of the class "reads"; keyword "a" is its first peer, "b" its second."""
    addresses = {"a": "10.0.0.1:80", "b": "[2001:db8::1]:80"}
    learned = {addresses[name]: weight for name, weight in peers.items()}
    reads = UpstreamWeights(peers=learned)
    return Weights(upstreams={"reads": reads}, generation=7, reason="a test")


Tree = list[dict[str, Any]]


def parsed(text: str, directory: Path) -> Tree:
    """The directives of a configuration, as nginxinc/crossplane reads them."""
    file = directory / "parsed.conf"
    file.write_text(text, encoding="utf-8")
    payload = crossplane.parse(
        str(file), single=True, check_ctx=False, check_args=False, catch_errors=False
    )
    return payload["config"][0]["parsed"]


def found(tree: Tree, directive: str) -> list[list[str]]:
    """Arguments of every `directive`, at any depth, in order."""
    hits = []
    for entry in tree:
        if entry["directive"] == directive:
            hits.append(entry["args"])
        hits += found(entry.get("block", []), directive)
    return hits


def shape(tree: Tree) -> list[Any]:
    """A configuration without its values: directives, numbers of arguments, blocks."""
    return [(e["directive"], len(e["args"]), shape(e.get("block", []))) for e in tree]
