"""The demo: one seeded load on three unequal nodes, under three balancers one after the other.

    calibration   least_conn at a quarter of the load: the classes' deadlines
    round robin, least_conn    nginx's own; the hook only counts, the policy server observes
    Trimtab       the hook picks, the policy server learns

Each part has fresh nodes, which draw the same service times again, and the same schedule. The
collector runs from the first balancer to the last, the policy server from the second: what it
would see of round robin, whose slow node drowns, is no state that Trimtab meets.
"""

import json
import re
import shutil
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from trimtab import config
from trimtab.actuators import nginx_binary
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.children import Child
from trimtab.config import Config, Upstream
from trimtab.errors import TrimtabError
from trimtab.listen import claim
from trimtab.load.client import Progress
from trimtab.load.processes import run_processes
from trimtab.load.result import Result
from trimtab.load.schedule import ClassLoad, Schedule, build
from trimtab.load.workloads import SOCIAL, SOCIAL_PATHS, SOCIAL_SHARES

__all__ = ["BALANCERS", "Outcome", "Plan", "run"]

# nginx's name of the balancer, and ours in tables.
BALANCERS: Final = {
    "round_robin": "round robin",
    "least_conn": "least_conn",
    "trimtab": "Trimtab",
}
# Speeds 1 : 2 : 4. Twice as slow as the nodes can be, so that three nodes, nginx, the policy
# server and the load generator are far from filling two cores.
SLOWNESS: Final = (8, 4, 2)
CALIBRATION_SHARE: Final = 0.25
# A client gives up after this; beyond it the order of seconds says nothing more.
TIMEOUT_SECONDS: Final = 5.0
_START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to run: seconds of each part, requests a second in all, the seed, the directory."""

    source: Path  # the TOML file
    directory: Path
    seconds: float = 26.0
    calibration_seconds: float = 8.0
    rate_per_second: float = 170.0
    seed: int = 1
    statistics: Path | None = None

    @property
    def total_seconds(self) -> float:
        """Seconds under load."""
        return self.calibration_seconds + self.seconds * len(BALANCERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run gave: deadlines in seconds by class, a result by balancer, the last status."""

    deadlines: dict[str, float]
    results: dict[str, Result]
    status: dict[str, Any]


Report = Callable[[float, str, str], None]  # seconds done, what runs, a note


def _kind(upstream: Upstream) -> str:
    for kind, path in SOCIAL_PATHS.items():
        if upstream.location == path:
            return kind
    raise TrimtabError(
        f"the location {upstream.location!r} of {upstream.name!r} is none of the social network's: "
        + ", ".join(SOCIAL_PATHS.values())
    )


def _schedule(
    checked: Config, rate_per_second: float, seconds: float, seed: int, deadlines: dict[str, float]
) -> Schedule:
    classes = [
        ClassLoad(
            name=upstream.name,
            rate_per_second=rate_per_second * SOCIAL_SHARES[_kind(upstream)],
            request=SOCIAL[_kind(upstream)],
            deadline_seconds=deadlines.get(upstream.name),
        )
        for upstream in checked.upstreams
    ]
    return build(classes, seconds=seconds, seed=seed)


def _deadlines(checked: Config, result: Result) -> dict[str, float]:
    """d = mu + c sigma with c = 1 + 1/p, of each class, as the founding plan has it; seconds."""
    deadlines = {}
    for upstream in checked.upstreams:
        seen = result.summary(upstream.name).success
        if seen.count < 20:  # a mean and a deviation of fewer say little
            raise TrimtabError(
                f"only {seen.count} requests of {upstream.name!r} succeeded in the calibration, "
                "too few for a deadline; ask for a higher --rate, or see nodes.log"
            )
        value = seen.mean + (1 + 1 / upstream.priority) * seen.sd
        deadlines[upstream.name] = upstream.deadline_seconds or round(value, 4)
    return deadlines


def _with_deadlines(text: str, deadlines: dict[str, float]) -> str:
    """The TOML text with each upstream's deadline behind its name."""
    text = re.sub(r"(?m)^deadline_seconds *=.*\n", "", text)
    for name, seconds in deadlines.items():
        line = f"deadline_seconds = {seconds}"
        text, count = re.subn(
            rf'(?m)^(name *= *"{re.escape(name)}" *(?:#.*)?)$', rf"\1\n{line}", text
        )
        if count != 1:
            raise TrimtabError(f'write name = "{name}" on a line of its own, once')
    return text


class _Stage:
    """The processes of one run."""

    def __init__(self, plan: Plan, checked: Config) -> None:
        self.plan = plan
        self.checked = checked
        self.logs = plan.directory / "logs"

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-P", "-m", "trimtab", *arguments]

    @contextmanager
    def nodes(self) -> Iterator[Child]:
        """Fresh nodes that serve, one after the other address of the configuration."""
        addresses = sorted({p.address for u in self.checked.upstreams for p in u.peers})
        ports = [config.split_address(address)[1] for address in addresses]
        first = ports[0]
        if ports != list(range(first, first + len(SLOWNESS))):
            raise TrimtabError(
                f"{self.plan.source}: the demo needs peers at {len(SLOWNESS)} ports in a row of "
                f"127.0.0.1, not {', '.join(addresses)}"
            )
        for address in addresses:
            claim(address, "address", section="[[upstream.peer]]")
        slots = {p.address: p.slots for u in self.checked.upstreams for p in u.peers}
        argv = self.command(
            "demo",
            *("--nodes", str(len(addresses))),
            *("--port", str(first)),
            *("--slots", ",".join(str(slots[address] or 2) for address in addresses)),
            *("--slowness", ",".join(str(factor) for factor in SLOWNESS)),
            *("--database", str(self.plan.directory / "social.db")),
        )
        with Child("the social network", argv, log=self.logs / "nodes.log") as child:
            child.wait_until(
                lambda: all(_answers(f"http://{a}/healthz") for a in addresses),
                seconds=_START_SECONDS,
            )
            yield child

    @contextmanager
    def policy_server(self, path: Path) -> Iterator[Child]:
        """The policy server, answering."""
        argv = self.command("serve", "--config", str(path))
        with Child("the policy server", argv, log=self.logs / "policy.log") as child:
            child.wait_until(
                lambda: _answers(f"http://{self.checked.policy.admin_listen}/status.json"),
                seconds=_START_SECONDS,
            )
            yield child

    @contextmanager
    def collector(self) -> Iterator[Child | None]:
        """The collector, if statistics are wanted."""
        if self.plan.statistics is None:
            yield None
            return
        url = f"http://{self.checked.nginx.internal_listen}/status/format/json"
        argv = self.command("collect", url, "--output", str(self.plan.statistics))
        with Child("the collector", argv, log=self.logs / "collector.log") as child:
            yield child

    async def part(
        self, balancer: str, schedule: Schedule, report: Callable[[Progress], None], *others: Child
    ) -> Result:
        """The schedule through one balancer, with nodes and an nginx of its own."""
        with self.nodes() as nodes:
            # A directory of its own keeps each part's logs.
            prefix = self.plan.directory / f"nginx-{balancer}-{int(schedule.seconds)}"
            nginx = NginxProcess.rendered(prefix, self.checked, balancer=balancer)
            nginx.start()
            try:
                result = await run_processes(
                    schedule,
                    f"http://{self.checked.nginx.listen[0]}",
                    timeout_seconds=TIMEOUT_SECONDS,
                    on_progress=report,
                )
                for child in (nodes, *others):
                    child.check()
                if not nginx.running:
                    raise TrimtabError(f"nginx has died; see {nginx.error_log}")
            finally:
                # Nobody waits for an answer any more: the load has ended.
                nginx.stop(0.0)
        return result


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:  # noqa: S310 -- http, ours
            return bool(answer.status == 200)
    except OSError:
        return False


def _status(checked: Config) -> dict[str, Any]:
    url = f"http://{checked.policy.admin_listen}/status.json"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            status: dict[str, Any] = json.load(answer)
    except (OSError, ValueError) as error:
        raise TrimtabError(f"the policy server does not tell its status ({url}): {error}") from None
    return status


def preflight(checked: Config) -> None:
    """Refuse to start what cannot work: no nginx with Lua, or a port in use."""
    nginx_binary.machine(nginx_binary.find(checked.nginx.binary), Path.cwd(), "lua")
    for address in checked.nginx.listen:
        claim(address, "listen", section="[nginx]")
    claim(checked.nginx.internal_listen, "internal_listen", section="[nginx]")
    claim(checked.policy.listen, "listen")
    claim(checked.policy.admin_listen, "admin_listen")
    for address in sorted({p.address for u in checked.upstreams for p in u.peers}):
        claim(address, "address", section="[[upstream.peer]]")


def _prepare(plan: Plan) -> None:
    """An empty directory for this run; what an earlier one left there goes."""
    marker = plan.directory / ".trimtab-run"
    if plan.directory.exists() and not marker.exists() and any(plan.directory.iterdir()):
        raise TrimtabError(f"{plan.directory} is not a directory of an earlier run; name another")
    try:
        shutil.rmtree(plan.directory, ignore_errors=True)
        plan.directory.mkdir(parents=True, exist_ok=True)
        marker.touch()
        if plan.statistics is not None:
            plan.statistics.touch()
    except OSError as error:
        raise TrimtabError(f"cannot write: {error}") from None


async def run(plan: Plan, report: Report) -> Outcome:
    """Run the whole of it; `report` is called about twice a second.

    Raises TrimtabError when a part fails. Every process is gone then, as after cancellation.
    """
    text = plan.source.read_text(encoding="utf-8")
    directory = plan.directory.absolute()
    plan = replace(plan, directory=directory)
    checked = config.parse(text, str(plan.source))
    state = directory / "state"
    checked = replace(checked, policy=replace(checked.policy, state_directory=state))
    preflight(checked)
    _prepare(plan)
    stage = _Stage(plan, checked)
    done = 0.0

    def reporter(label: str) -> Callable[[Progress], None]:
        def tell(progress: Progress) -> None:
            note = f"{progress.done} done, {progress.failed} failed"
            report(done + min(progress.elapsed_seconds, progress.seconds), label, note)

        return tell

    report(done, "calibration", "starting")
    quiet = _schedule(
        checked, plan.rate_per_second * CALIBRATION_SHARE, plan.calibration_seconds, plan.seed, {}
    )
    deadlines = _deadlines(checked, await stage.part("least_conn", quiet, reporter("calibration")))
    done += plan.calibration_seconds

    path = directory / "trimtab.toml"
    text = re.sub(
        r"(?m)^state_directory *=.*$", f"state_directory = {json.dumps(str(state))}", text
    )
    # The states are fitted in the middle of the second part, and again when the third brings
    # others than those.
    observe = f"observe_seconds = {max(plan.seconds / 2, 1.0):g}"
    text = re.sub(r"(?m)^observe_seconds *=.*$", observe, text)
    path.write_text(_with_deadlines(text, deadlines), encoding="utf-8")
    checked = config.load(path)
    stage.checked = checked
    schedule = _schedule(checked, plan.rate_per_second, plan.seconds, plan.seed, deadlines)
    results = {}
    with ExitStack() as running:
        others = [child for child in (running.enter_context(stage.collector()),) if child]
        for balancer, label in BALANCERS.items():
            report(done, label, "starting")
            if balancer == "least_conn":
                others.append(running.enter_context(stage.policy_server(path)))
            results[balancer] = await stage.part(balancer, schedule, reporter(label), *others)
            done += plan.seconds
        status = _status(checked)
    (directory / "status.json").write_text(json.dumps(status, indent=1), encoding="utf-8")
    return Outcome(deadlines=deadlines, results=results, status=status)
