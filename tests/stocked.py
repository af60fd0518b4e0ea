"""A private nginx in stock mode without the VTS module, and a configuration that steers it."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ports import free_ports
from trimtab import config
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.config import Config
from trimtab.model import PeerWeight, UpstreamWeights, Weights

__all__ = ["Stocked", "stocked", "toml", "weights", "weights_of"]

PAGE = "http://127.0.0.1:9/status"


def toml(directory: Path, *, peers: list[str], stock: str = "", vts_url: str = PAGE) -> str:
    """Stock mode with its nginx in `directory`/nginx; one class, "reads", at /read."""
    grpc, admin, listen, internal = free_ports(4)
    nginx = directory / "nginx"
    return (
        f'[policy]\nlisten = "127.0.0.1:{grpc}"\nadmin_listen = "127.0.0.1:{admin}"\n'
        f'interval_seconds = 0.1\nstate_directory = "{directory}/state"\n'
        f'[nginx]\nmode = "stock"\nlisten = ["127.0.0.1:{listen}"]\n'
        f'internal_listen = "127.0.0.1:{internal}"\ninstance = "test"\n'
        f'[stock]\nvts_url = "{vts_url}"\ninclude_file = "{nginx}/upstreams.conf"\n'
        f'main_file = "{nginx}/nginx.conf"\npid_file = "{nginx}/nginx.pid"\n{stock}\n'
        '[[upstream]]\nname = "reads"\nlocation = "/read"\ntimeout_seconds = 2\n'
        + "".join(f'[[upstream.peer]]\naddress = "{address}"\n' for address in peers)
    )


def weights(generation: int = 1, *, drain: str = "", **rates: float) -> Weights:
    """Weights of the class "reads": rates by name, "a" and "b" of `PEERS`."""
    return weights_of({PEERS[n]: rate for n, rate in rates.items()}, generation, PEERS.get(drain))


def weights_of(
    rates: Mapping[str, float], generation: int = 1, drain: str | None = None
) -> Weights:
    """Weights of the class "reads", by address what nginx is to get: capacity to the power 1.25."""
    peers = {a: PeerWeight(rate=rate**0.8, drain=a == drain) for a, rate in rates.items()}
    upstreams = {"reads": UpstreamWeights(peers=peers)}
    return Weights(upstreams=upstreams, epoch=1, generation=generation, reason="a test")


PEERS = {"a": "127.0.0.1:9", "b": "127.0.0.2:9"}


@dataclass
class Stocked:
    """A running nginx and its configuration."""

    config: Config
    nginx: NginxProcess
    file: Path

    @property
    def text(self) -> str:
        """The upstream file."""
        return self.file.read_text()

    @property
    def beside(self) -> list[str]:
        """What lies beside the upstream file and is ours, but for the lock."""
        names = (p.name for p in self.file.parent.iterdir())
        return sorted(n for n in names if "trimtab" in n and not n.endswith("-lock"))

    @property
    def reloads(self) -> int:
        """How often nginx was told to reload."""
        return self.nginx.error_log.read_text().count("signal 1 (SIGHUP) received")


@contextlib.contextmanager
def stocked(
    directory: Path,
    *,
    peers: list[str] | None = None,
    stock: str = "",
    vts_url: str = PAGE,
    workers: int = 1,
) -> Iterator[Stocked]:
    """Run it; stopped at the end in any case."""
    directory.chmod(0o755)
    checked = config.parse(
        toml(directory, peers=peers or list(PEERS.values()), stock=stock, vts_url=vts_url)
    )
    checked = replace(checked, nginx=replace(checked.nginx, worker_processes=workers))
    with NginxProcess.rendered(directory / "nginx", checked) as nginx:
        yield Stocked(checked, nginx, checked.stock.include_file)
