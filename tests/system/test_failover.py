"""Several policy servers on one Redis, a real nginx under load, and what dies in between."""

import http.client
import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import redis_server
from nginxes import answering
from ports import free_ports
from trimtab import config
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.children import Child
from trimtab.cli.status import fetch, render
from trimtab.errors import TrimtabError

PATIENCE_SECONDS = 20.0
LEASE_SECONDS = 0.9
TIME_TO_LIVE_SECONDS = 2.7

TOKEN = "a-token-of-this-test"


class Server:
    """One of the policy servers."""

    def __init__(self, directory: Path, name: str, listen: str, common: str) -> None:
        self.directory, self.name, self.listen = directory, name, listen
        self.admin = f"127.0.0.1:{free_ports(1)[0]}"
        self.file = directory / f"{name}.toml"
        self.file.write_text(
            f'[policy]\nlisten = "{listen}"\nadmin_listen = "{self.admin}"\n'
            + common.replace("NAME", name)
        )
        self.child: Child | None = None

    def start(self) -> None:
        """Start it; it need not answer yet."""
        argv = [sys.executable, "-m", "trimtab", "serve", "--config", str(self.file)]
        environment = {**os.environ, "TRIMTAB_TEST_TOKEN": TOKEN}
        self.child = Child(
            self.name, argv, log=self.directory / f"{self.name}.log", environment=environment
        )

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it."""
        if self.child is not None:
            self.signal(signal.SIGCONT)
            self.signal(number)
            until(lambda: not self.child.running)
            self.child = None

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.child.pid, number)

    def status(self) -> dict[str, Any]:
        """What it tells; {} when it does not answer."""
        try:
            return fetch(self.admin)
        except TrimtabError:
            return {}

    @property
    def role(self) -> str:
        """Its role; "" when it does not answer."""
        return str(self.status().get("availability", {}).get("role", ""))

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.directory / f"{self.name}.log").read_text()

    def healthz(self) -> tuple[int, str]:
        """Status and text."""
        connection = http.client.HTTPConnection(self.admin, timeout=10)
        try:
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def order(self, action: str, **body: Any) -> tuple[int, dict[str, Any]]:
        """A control call."""
        connection = http.client.HTTPConnection(self.admin, timeout=10)
        try:
            headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
            connection.request("POST", f"/control/{action}", json.dumps(body), headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


def until(true: Callable[[], bool], log: Callable[[], str] = str) -> None:
    """Wait until it is so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, log()
        time.sleep(0.02)


class Watch:
    """A load through nginx, and the generations that nginx says it uses, until it ends."""

    def __init__(self, nginx: config.Nginx) -> None:
        self.failed: list[str] = []
        self.answered = 0
        self.generations: list[int] = []
        self._nginx = nginx
        self._over = threading.Event()
        self._threads = [threading.Thread(target=t) for t in (self._load, self._look)]

    def __enter__(self) -> "Watch":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _load(self) -> None:
        while not self._over.wait(0.005):
            path = ("/read", "/write")[self.answered % 2]
            try:
                with urllib.request.urlopen(f"http://{self._nginx.listen[0]}{path}", timeout=10):
                    self.answered += 1
            except OSError as error:
                self.failed.append(str(error))

    def _look(self) -> None:
        url = f"http://{self._nginx.internal_listen}/trimtab/status"
        while not self._over.wait(0.02):
            with urllib.request.urlopen(url, timeout=10) as answer:
                weights = json.load(answer)["weights"]
            learned = weights["source"] == "learned"
            self.generations.append(weights["generation"] if learned else 0)

    @property
    def now(self) -> int:
        """The generation in use."""
        return self.generations[-1] if self.generations else 0


class Group:
    """Two policy servers, a Redis, an nginx and two backends."""

    def __init__(self, directory: Path, redis: redis_server.Redis, peers: list[str]) -> None:
        self.redis = redis
        self.peers = peers
        grpc = [f"127.0.0.1:{port}" for port in free_ports(4)]
        common = (
            f"interval_seconds = 0.1\ntime_to_live_seconds = {TIME_TO_LIVE_SECONDS}\n"
            f'state_directory = "{directory}/unused"\ntoken_variable = "TRIMTAB_TEST_TOKEN"\n'
            f'[state]\nurl = "{redis.url}"\nlease_seconds = {LEASE_SECONDS}\nname = "NAME"\n'
            f'[nginx]\nlisten = ["{grpc[2]}"]\ninternal_listen = "{grpc[3]}"\ninstance = "test"\n'
            f"policy_servers = {json.dumps(grpc[:2])}\n"
        )
        for name in ("read", "write"):
            common += f'[[upstream]]\nname = "{name}s"\nlocation = "/{name}"\n'
            common += "".join(f'[[upstream.peer]]\naddress = "{a}"\nslots = 2\n' for a in peers)
        self.servers = [
            Server(directory, n, a, common) for n, a in zip(("one", "two"), grpc, strict=False)
        ]
        self.config = config.load(self.servers[0].file)
        self.nginx = NginxProcess.rendered(directory / "nginx", self.config)

    def logs(self) -> str:
        """Of both servers."""
        return "".join(s.log for s in self.servers)

    def wait_for_leader(self, of: list[Server] | None = None) -> Server:
        """Whoever leads, once one does."""
        found: list[Server] = []

        def is_led() -> bool:
            found[:] = [s for s in of or self.servers if s.role == "leader"]
            return len(found) == 1

        until(is_led, self.logs)
        return found[0]

    def other(self, server: Server) -> Server:
        """The other one."""
        return next(s for s in self.servers if s is not server)

    def published(self) -> tuple[int, int]:
        """Token of the lease and generation of the weights in Redis."""
        with self.redis.client() as client:
            token = int((client.get("trimtab:lease") or b"0").split()[0])
            return token, int((client.hget("trimtab:weights", "id") or b"0:0").split(b":")[1])


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """All running, one leading and one following."""
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server.running())
        peers = [stack.enter_context(answering()) for _ in range(2)]
        built = Group(tmp_path_factory.mktemp("failover"), redis, peers)
        for server in built.servers:
            server.start()
            stack.callback(server.stop)
        stack.enter_context(built.nginx)
        built.wait_for_leader()
        until(lambda: {s.role for s in built.servers} == {"leader", "follower"}, built.logs)
        yield built


@contextmanager
def watched(group: Group, *, static: bool = False) -> Iterator[Watch]:
    """A load beside which nothing may fail and no generation go back; `static` allows an nginx
    without learned weights in between."""
    with Watch(group.config.nginx) as watch:
        until(lambda: watch.now > 0, group.logs)
        yield watch
    assert watch.failed == []
    assert watch.answered > 0
    seen = [g for g in watch.generations if g] if static else watch.generations
    seen = seen[seen.index(next(g for g in seen if g)) :]
    assert seen == sorted(seen), seen


def test_roles_are_shown_and_orders_go_to_the_leader(group: Group) -> None:
    """Both tell who leads; an order to a follower is refused with the leader's address."""
    leader = group.wait_for_leader()
    follower = group.other(leader)
    until(lambda: (follower.status().get("availability") or {}).get("leader") == leader.name)
    status, text = follower.healthz()
    assert status == 200, text
    assert f"role: follower of {leader.name}" in text
    assert "role: leader" in leader.healthz()[1]
    assert f"follower of {leader.name}" in render(follower.status())
    code, told = follower.order("drain", peer=group.peers[0])
    assert code == 409
    assert leader.admin in told["error"]


def test_kill_9_of_the_leader_loses_nothing(group: Group) -> None:
    """Under load another one leads, with pins, epoch and journal; no request fails."""
    leader = group.wait_for_leader()
    follower = group.other(leader)
    pin = {"upstream": "reads", "peer": group.peers[0]}
    with watched(group) as watch:
        assert leader.order("pin", weight=1.4, **pin)[0] == 200

        def is_everywhere() -> bool:
            told = follower.status()["upstreams"]["reads"]["peers"][group.peers[0]]
            return told["weight"] == 1.4 and watch.now >= follower.status()["generation"]

        until(is_everywhere, group.logs)
        before = follower.status()
        leader.stop(signal.SIGKILL)
        assert group.wait_for_leader([follower]) is follower
        after = follower.status()
        assert after["guard"]["pins"] == [["reads", group.peers[0], 1.4]]
        assert after["epoch"] == before["epoch"]
        assert after["generation"] >= before["generation"]
        assert any("pinned" in entry["reason"] for entry in after["journal"])
        assert after["upstreams"]["reads"]["peers"][group.peers[0]]["weight"] == 1.4
        # It gets reports, and what it decides reaches nginx.
        until(lambda: len(follower.status()["instances"]) == 1, group.logs)
        assert follower.order("unpin", **pin)[0] == 200
        until(lambda: watch.now > after["generation"], group.logs)
        leader.start()
        until(lambda: leader.role == "follower", group.logs)


def test_a_leader_that_was_paused_overwrites_nothing(group: Group) -> None:
    """Stopped past its lease and resumed, the former leader finds itself a follower; neither
    token nor generation in Redis goes back."""
    leader = group.wait_for_leader()
    follower = group.other(leader)
    with watched(group):
        token, _ = group.published()
        leader.signal(signal.SIGSTOP)
        until(lambda: follower.role == "leader", group.logs)
        new, generation = group.published()
        assert new > token
        leader.signal(signal.SIGCONT)
        until(lambda: leader.role == "follower", group.logs)
        until(lambda: "no longer leading" in leader.log, group.logs)
        assert follower.role == "leader"
        last = group.published()
        assert last[0] == new
        assert last[1] >= generation


def test_followers_pass_reports_on(group: Group) -> None:
    """What nginx reports to a follower arrives at the leader."""
    leader = group.wait_for_leader()
    follower = group.other(leader)
    with watched(group):

        def both() -> bool:
            # nginx asks the two in turn, so either has taken reports in.
            mine, its = (s.status().get("instances") for s in (leader, follower))
            return bool(mine and its) and mine[0]["sequence"] >= its[0]["sequence"] > 0

        until(both, group.logs)


def test_redis_away_and_back_empty(group: Group) -> None:
    """Without Redis nobody leads, known weights are answered until their end, then nginx is on
    its static ones; with an empty Redis all that was learned is there again, and nothing failed."""
    leader = group.wait_for_leader()
    pin = {"upstream": "writes", "peer": group.peers[1]}
    assert leader.order("pin", weight=1.3, **pin)[0] == 200
    with watched(group, static=True) as watch:
        follower = group.other(leader)
        until(
            lambda: (
                follower.status()["upstreams"]["writes"]["peers"][group.peers[1]]["weight"] == 1.3
            )
        )
        before = leader.status()
        group.redis.kill()
        until(lambda: {s.role for s in group.servers} == {"follower"}, group.logs)
        until(lambda: all(s.healthz()[0] == 503 for s in group.servers), group.logs)
        until(lambda: watch.now == 0, group.logs)
        _, text = leader.healthz()
        assert "no weights to answer" in text
        group.redis.start()
        after = group.wait_for_leader().status()
        assert after["epoch"] == before["epoch"]
        assert after["generation"] >= before["generation"]
        assert after["guard"]["pins"] == [["writes", group.peers[1], 1.3]]
        until(lambda: watch.now > 0, group.logs)
    for server in group.servers:
        assert server.log.count("Redis answers again") <= server.log.count("does not answer") + 1
        assert server.log.count("does not answer") < 6, server.log


def test_a_graceful_stop_hands_over(group: Group) -> None:
    """SIGTERM gives the lease up, so the other one leads without waiting for its end."""
    leader = group.wait_for_leader()
    with watched(group):
        leader.stop(signal.SIGTERM)
        with group.redis.client() as client:
            holder = (client.get("trimtab:lease") or b"").decode()
        assert f" {leader.name} " not in holder
        assert group.wait_for_leader([group.other(leader)])
