"""Trimtab in stock mode: nginx's own least_conn, its integer weights learned and put in by reloads.

Nothing but the statistics and the upstream file connects nginx and the policy server. Where
TRIMTAB_VTS_MODULE names nginx-module-vts's .so file, the statistics are the module's. Else, as no
distribution has the module, they are a page of the same form by Trimtab's hook, which counts and
balances nothing then; its work is in the row's processor time.
"""

import json
import os
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trimtab.actuators import nginx_conf, templates, upstreams_conf
from trimtab.actuators.nginx_binary import find, machine
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.bench.balancers.base import Running, Site, waited_seconds
from trimtab.bench.balancers.hook import RunningHook, serve
from trimtab.children import Child
from trimtab.config import Config, Stock, split_address
from trimtab.errors import DependencyError, TrimtabError

__all__ = ["MODULE_VARIABLE", "StockMode", "stock_config"]

MODULE_VARIABLE: Final = "TRIMTAB_VTS_MODULE"

# As often as the collector of the founding project reads: the windows of stock mode.
WINDOW_SECONDS: Final = 2.0

# A run lasts a minute, not hours: the default of 30 s between reloads would hardly see the learned
# weights in force. Three windows apart, as many as the estimates remember at the least.
RELOAD_SECONDS: Final = 6.0


class _Running(RunningHook):
    """nginx, the policy server, and how many reloads there were."""

    def __init__(self, process: NginxProcess, policy: Child, site: Site) -> None:
        super().__init__(process, policy, site)
        self._told = site.directory / "stock.json"

    def cpu_seconds(self) -> float:
        """Of the master and its workers, those that reloads have ended included."""
        now = super().cpu_seconds()
        return now + waited_seconds(self._process.pid) if now else now

    def check(self) -> None:
        """Raise TrimtabError when a part has died; note what the reloads came to."""
        super().check()
        try:
            with urllib.request.urlopen(self._status_url, timeout=5) as answer:  # noqa: S310 -- ours
                status = json.load(answer)
            self._told.write_text(json.dumps(status["stock"]) + "\n", encoding="utf-8")
        except (OSError, ValueError, KeyError) as error:
            raise TrimtabError(f"the policy server tells no status: {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class StockMode:
    """Stock mode, told nothing of the servers."""

    name: str
    label: str
    hint: str = ""

    def missing(self) -> str:
        """Why it cannot run here."""
        module = _module()
        if module and not module.is_file():
            return f"{MODULE_VARIABLE} names {module}, which is no file"
        try:
            machine(find("nginx"), Path.cwd(), "plain" if module else "lua")
        except DependencyError as error:
            return str(error)
        return ""

    def start(self, site: Site) -> Running:
        """Start nginx with static weights, then the policy server, which learns from none."""
        site.directory.mkdir(parents=True, exist_ok=True)
        config = _config(site)
        process = _nginx(site, config)
        # Estimates of an earlier run would be known beforehand.
        for file in (site.directory / "state").glob("*"):
            file.unlink()
        process.start()
        try:
            policy = serve(site, config, _stock_lines(config))
        except BaseException:
            process.stop(0.0)
            raise
        return _Running(process, policy, site)


def _module() -> Path | None:
    """nginx-module-vts, where there is one."""
    named = os.environ.get(MODULE_VARIABLE, "")
    return Path(named).absolute() if named else None


def _internal(site: Site) -> str:
    """Where the upstream file's own server listens: the page has the site's internal address."""
    return f"127.0.0.2:{split_address(site.internal_listen)[1]}"


def stock_config(site: Site, page: str | None = None, internal_listen: str = "") -> Config:
    """The scenario's configuration in stock mode, all files in the site's directory.

    `page` is where statistics are; None for the rendered one, which needs the module.
    """
    config = site.config()
    return replace(
        config,
        policy=replace(config.policy, interval_seconds=WINDOW_SECONDS),
        nginx=replace(
            config.nginx, mode="stock", internal_listen=internal_listen or site.internal_listen
        ),
        stock=Stock(
            vts_url=(page,) if page else (),
            include_file=site.directory / "upstreams.conf",
            main_file=site.directory / "nginx.conf",
            pid_file=site.directory / "nginx.pid",
            reload_min_seconds=RELOAD_SECONDS,
            # Six seconds apart for a run; the hour's budget is for days.
            reloads_per_hour=600,
        ),
    )


def _config(site: Site) -> Config:
    if _module():
        return stock_config(site)
    page = f"http://{site.internal_listen}/status/format/json"
    return stock_config(site, page, _internal(site))


def _stock_lines(config: Config) -> list[str]:
    stock = config.stock
    return [
        "[stock]",
        f"vts_url = {json.dumps(stock.vts_url)}",
        *(
            f"{name} = {json.dumps(str(getattr(stock, name)))}"
            for name in ("include_file", "main_file", "pid_file")
        ),
        f"reload_min_seconds = {stock.reload_min_seconds}",
        f"reloads_per_hour = {stock.reloads_per_hour}",
    ]


def _nginx(site: Site, config: Config) -> NginxProcess:
    """nginx as stock mode renders it, not yet started."""
    directory, found = site.directory, find("nginx")
    nginx_conf.write({}, directory)
    if module := _module():
        with_module = machine(found, directory, "stock", vts_module=module)
        return NginxProcess.rendered(directory, config, machine=with_module)
    # The hook's counting variant, in which our upstream file takes the place of its own; the hook
    # finds no policy server and needs none.
    counting = site.config()
    files = dict(
        nginx_conf.render(
            counting,
            directory,
            machine=machine(found, directory, "lua"),
            mode="lua",
            balancer="least_conn",
        )
    )
    include = templates.include_line(directory / "upstreams.conf")
    if include not in files["nginx.conf"]:
        raise TrimtabError(f"the rendered nginx.conf lacks {include}")
    nobody = f"{include}\n    upstream trimtab_policy {{ server 127.0.0.1:1; }}"
    files["nginx.conf"] = files["nginx.conf"].replace(include, nobody)
    files["upstreams.conf"] = upstreams_conf.render_upstreams(config)[0]
    nginx_conf.write(files, directory)
    return NginxProcess(directory, counting, installation=found)
