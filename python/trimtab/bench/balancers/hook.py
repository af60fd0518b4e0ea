"""Trimtab: nginx with the Lua hook, and the policy server that advises it."""

import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from trimtab.actuators.nginx_binary import find, machine
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.bench.balancers.base import Running, Site
from trimtab.bench.balancers.nginx import RunningNginx
from trimtab.children import Child
from trimtab.config import Config, Learning
from trimtab.errors import DependencyError, TrimtabError
from trimtab.trials import PROMOTED

__all__ = ["Hook", "RunningHook", "promoted_seconds", "serve"]

_START_SECONDS: Final = 30.0


# What nginx logs when Lua code fails. The hook then leaves requests to nginx's own balancer, so
# that they are served; figures of such a run would not be ours.
_LUA_ERROR: Final = re.compile(r"\[(error|crit|alert|emerg)\].*(lua|trimtab)")


class RunningHook(RunningNginx):
    """nginx with the hook, and the policy server beside it if there is one."""

    def __init__(self, process: NginxProcess, policy: Child | None, site: Site) -> None:
        super().__init__(process)
        self._status_url = f"http://{site.admin_listen}/status.json"
        self._log = process.error_log
        # Earlier runs in the same directory have left their lines.
        self._begin = self._log.stat().st_size if self._log.exists() else 0
        self._policy = policy

    def check(self) -> None:
        """Raise TrimtabError when a part has died, or the hook has complained."""
        super().check()
        if self._policy is not None:
            self._policy.check()
        with self._log.open(errors="replace") as log:
            log.seek(self._begin)
            said = next((line for line in log if _LUA_ERROR.search(line)), "")
        if said:
            raise TrimtabError(f"the hook failed: {said.strip()}")

    def remarks(self) -> dict[str, float]:
        """`promoted_seconds`, from the policy server's start to the first promotion of a profile;
        nothing when there was none. Raises TrimtabError when the server does not answer."""
        if self._policy is None:
            return {}
        try:
            with urllib.request.urlopen(self._status_url, timeout=5) as answer:  # noqa: S310 -- ours
                seconds = promoted_seconds(json.load(answer)["journal"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TrimtabError(f"the policy server tells no status: {error}") from None
        return {} if seconds is None else {"promoted_seconds": seconds}

    def stop(self) -> None:
        """End nginx, then the policy server."""
        super().stop()
        if self._policy is not None:
            self._policy.stop()


def promoted_seconds(journal: Sequence[Mapping[str, Any]]) -> float | None:
    """Seconds from the first of the journal's entries (dicts of `journal.Entry`) to the decision
    that promoted a profile; None when none did. Raises KeyError and TypeError for other data."""
    for entry in journal:
        if entry["kind"] == "decision" and PROMOTED in entry["reason"]:
            return float(entry["time"] - journal[0]["time"])
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """One mode of Trimtab.

    `slots`: the servers' slots are given; `discipline`: and whether they queue or share. `hold`:
    whether requests wait in nginx until a server has room, as in the configuration.
    `try_deadlines`, `wait_deadlines`: try_timeout_seconds and max_wait_seconds in deadlines.
    `advised`: a policy server runs beside, without learning unless `learning` says so: it sends the
    estimates, so that a scenario's first seconds matter less.
    """

    name: str
    label: str
    slots: bool = True
    advised: bool = True
    discipline: bool = False
    hold: str = "auto"
    learning: Learning = field(default_factory=lambda: Learning(enabled=False))
    try_deadlines: float | None = None
    wait_deadlines: float | None = None
    hint: str = ""

    def missing(self) -> str:
        """Why it cannot run here."""
        try:
            machine(find("nginx"), Path.cwd(), "lua")
        except DependencyError as error:
            return str(error)
        return ""

    def start(self, site: Site) -> Running:
        """Start the policy server, if any, then nginx."""
        config = site.config(slots=self.slots, discipline=self.discipline, hold=self.hold)
        config = replace(config, learning=self.learning)
        if self.try_deadlines is not None:
            config = _hasty(config, self.try_deadlines)
        if self.wait_deadlines is not None:
            config = _refusing(config, self.wait_deadlines)
        site.directory.mkdir(parents=True, exist_ok=True)
        # What an earlier run has learned would be told to this one.
        shutil.rmtree(config.policy.state_directory, ignore_errors=True)
        policy = serve(site, config) if self.advised else None
        process = NginxProcess.rendered(site.directory, config)
        running = RunningHook(process, policy, site)
        try:
            process.start()
        except BaseException:
            running.stop()
            raise
        return running


def _hasty(config: Config, deadlines: float) -> Config:
    """The same, with a try timeout for each class that has a deadline."""
    return replace(
        config,
        upstreams=tuple(
            replace(u, try_timeout_seconds=u.deadline_seconds and u.deadline_seconds * deadlines)
            for u in config.upstreams
        ),
    )


def _refusing(config: Config, deadlines: float) -> Config:
    """The same, with a longest wait for each class that has a deadline."""
    return replace(
        config,
        upstreams=tuple(
            replace(u, max_wait_seconds=u.deadline_seconds and u.deadline_seconds * deadlines)
            for u in config.upstreams
        ),
    )


def serve(site: Site, config: Config, stock: Sequence[str] = ()) -> Child:
    """The policy server with this configuration, answering. `stock`: the lines of [stock]."""
    path = site.directory / "trimtab.toml"
    path.write_text("\n".join([*_toml(config), *stock, ""]), encoding="utf-8")
    child = Child(
        "the policy server",
        [sys.executable, "-P", "-m", "trimtab", "serve", "--config", str(path)],
        log=site.directory / "policy.log",
    )
    try:
        url = f"http://{site.admin_listen}/status.json"
        child.wait_until(lambda: _answers(url), seconds=_START_SECONDS)
    except BaseException:
        child.stop()
        raise
    return child


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 -- http, ours
            return bool(answer.status == 200)
    except OSError:
        return False


def _different(learning: Learning) -> list[str]:
    """The keys of [learning] that are not at their defaults."""
    usual = Learning()
    values = {f.name: getattr(learning, f.name) for f in fields(Learning)}
    return [
        f"{name} = {json.dumps(str(value) if isinstance(value, Path) else value)}"
        for name, value in values.items()
        if value != getattr(usual, name)
    ]


def _toml(config: Config) -> list[str]:
    """The configuration as lines of a file; every value was checked when `Config` was made."""
    lines = [
        "[policy]",
        f'listen = "{config.policy.listen}"',
        f'admin_listen = "{config.policy.admin_listen}"',
        f'state_directory = "{config.policy.state_directory}"',
        f"interval_seconds = {config.policy.interval_seconds}",
        "[nginx]",
        f'mode = "{config.nginx.mode}"',
        f'listen = ["{config.nginx.listen[0]}"]',
        f'internal_listen = "{config.nginx.internal_listen}"',
        f"worker_processes = {config.nginx.worker_processes}",
        f'instance = "{config.nginx.instance}"',
        "[learning]",
        *_different(config.learning),
    ]
    for upstream in config.upstreams:
        lines += [
            "[[upstream]]",
            f'name = "{upstream.name}"',
            f'location = "{upstream.location}"',
            f"priority = {upstream.priority}",
            f"deadline_seconds = {upstream.deadline_seconds}",
            f'hold = "{upstream.hold}"',
        ]
        for peer in upstream.peers:
            lines += ["[[upstream.peer]]", f'address = "{peer.address}"', f"weight = {peer.weight}"]
            if peer.slots is not None:
                lines.append(f"slots = {peer.slots}")
            if peer.discipline is not None:
                lines.append(f'discipline = "{peer.discipline}"')
    return lines
