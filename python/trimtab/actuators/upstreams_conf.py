"""`upstreams.conf`: the groups of servers, in stock mode also the server that tells of them.

In stock mode this file alone carries the weights. Its token names what it holds: workers tell it,
and the file itself too (`upstream_file`).
"""

import hashlib
import json
from typing import Any

from trimtab import __version__
from trimtab.actuators.groups import stock_groups
from trimtab.actuators.nginx_checks import check
from trimtab.actuators.templates import environment
from trimtab.config import Config
from trimtab.model import Weights

__all__ = ["render_upstreams", "token_of_groups", "values"]


def values(config: Config, groups: list[dict[str, Any]], weights: Weights | None) -> dict[str, Any]:
    """What upstreams.conf needs."""
    return {
        "config": config,
        "generation": weights.generation if weights else 0,
        "groups": groups,
        "policy_addresses": [],
        "source": config.path,
        "version": __version__,
        "weights_from": f"learned weights ({weights.reason})" if weights else "static weights",
    }


def token_of_groups(config: Config, groups: list[dict[str, Any]], weights: Weights | None) -> str:
    """Names what the workers of a configuration serve: epoch, generation, and the content."""
    content = json.dumps([groups, config.nginx.internal_listen, config.stock.vts_url])
    digest = hashlib.sha256(content.encode(errors="replace")).hexdigest()[:16]
    epoch, generation = (weights.epoch, weights.generation) if weights else (0, 0)
    return f"{epoch}-{generation}-{digest}"


def render_upstreams(
    config: Config, weights: Weights | None = None, *, status: bool = True
) -> tuple[str, str]:
    """The upstream file of stock mode alone, for an nginx that includes it; and its token, which
    the workers that serve it tell at /trimtab/generation.

    Args:
        config: what to render.
        weights: learned weights; the static ones when None.
        status: whether the internal server shows the statistics, as far as the configuration
            wants that at all. False needs no VTS module.

    Raises:
        ConfigError: a value cannot be written safely.
    """
    check(config, hook=False)
    groups = stock_groups(config, weights)
    token = token_of_groups(config, groups, weights)
    text = (
        environment()
        .get_template("upstreams.conf.j2")
        .render(
            {
                **values(config, groups, weights),
                "stock": True,
                "token": token,
                "vts": status and not config.stock.vts_url,
            }
        )
    )
    return text, token
