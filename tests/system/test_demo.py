"""`trimtab demo` as processes: one database, one parent, nothing left behind."""

import contextlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from http_raw import get, post
from ports import free_port

SOON = 60.0  # seconds; a node starts in one, but the machine may be busy

COMPOSE = "/wrk2-api/post/compose"
USER = "/wrk2-api/user-timeline/read"


class Demo:
    """A running `trimtab demo`; its process group is killed at the end, whatever happens."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "trimtab", "demo", *options],
            cwd=directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def end(self, number: int) -> tuple[int, str, str]:
        """Send a signal and wait: status, output, errors."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str, str]:
        """Wait for the end: status, output, errors."""
        output, errors = self.process.communicate(timeout=SOON)
        return self.process.returncode, output, errors

    def children(self) -> list[int]:
        """The process ids of its children."""
        pid = self.process.pid
        return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Starts demos in a directory of their own; kills what is left of them."""
    started: list[Demo] = []

    def start(*options: str) -> Demo:
        started.append(Demo(tmp_path, "--users", "30", *options))
        return started[-1]

    yield start
    for one in started:
        left = one.children() if one.process.poll() is None else []
        for pid in (one.process.pid, *left):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.process.communicate()


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def healthy(address: str) -> bool:
    """Whether a node answers."""
    try:
        return get(address, "/healthz").body == b"ok\n"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Whether a process is no more; one that only waits to be collected counts as gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def two_nodes(demo: Callable[..., Demo], *options: str) -> tuple[Demo, list[str], list[int]]:
    """A parent of two nodes that are ready, their addresses and process ids."""
    port = free_port(2)
    running = demo("--nodes", "2", "--port", str(port), *options)
    addresses = [f"127.0.0.1:{port}", f"127.0.0.1:{port + 1}"]
    until(
        lambda: running.process.poll() is not None or all(map(healthy, addresses)),
        "the nodes answer",
    )
    assert running.process.poll() is None, running.wait()
    return running, addresses, running.children()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_nothing_behind(demo: Callable[..., Demo], number: signal.Signals) -> None:
    """Both nodes serve; the parent says so, and a signal ends all with the status for it."""
    running, addresses, pids = two_nodes(demo, "--slowness", "2,0.5")
    slowness = [json.loads(get(a, "/trimtab-demo/status").body)["slowness"] for a in addresses]
    assert running.process.stdout is not None
    said = [running.process.stdout.readline() for _ in range(3)]

    status, _, errors = running.end(number)

    assert (status, errors) == (128 + number, "")
    assert slowness == [2.0, 0.5]
    assert [a in line for a, line in zip(addresses, said[:2], strict=True)] == [True, True]
    assert said[2].startswith("2 nodes ready")
    assert len(pids) == 2
    assert all(map(gone, pids))
    assert not any(map(healthy, addresses))


def test_a_node_dies(demo: Callable[..., Demo]) -> None:
    """When a node dies, the parent names it, ends the others and fails."""
    running, addresses, pids = two_nodes(demo)

    os.kill(pids[1], signal.SIGKILL)
    status, _, errors = running.wait()

    assert status == 1
    assert f"node {addresses[1]} ended with signal 9" in errors
    assert "Traceback" not in errors
    assert gone(pids[0])


def test_the_parent_dies(demo: Callable[..., Demo]) -> None:
    """Nodes end when their parent is killed."""
    running, _, pids = two_nodes(demo)

    running.process.kill()

    until(lambda: all(map(gone, pids)), "the nodes end")


def test_port_in_use(demo: Callable[..., Demo]) -> None:
    """A taken port is one line with what to do, and no node is started."""
    _, addresses, _ = two_nodes(demo)
    port = addresses[1].rpartition(":")[2]

    status, output, errors = demo("--nodes", "2", "--port", port).wait()

    assert (status, output) == (1, "")
    assert errors.startswith(f"trimtab: {addresses[1]} is in use: ")
    assert errors.count("\n") == 1


def test_database_in_use(demo: Callable[..., Demo]) -> None:
    """A database in use is not built anew under its users."""
    two_nodes(demo)

    status, _, errors = demo("--node", f"127.0.0.1:{free_port()}", "--fresh").wait()

    assert status == 2
    assert "var/demo/social.db is in use by another demo" in errors


def test_two_processes_share_one_database(demo: Callable[..., Demo], tmp_path: Path) -> None:
    """Nodes that start at once build one database; what both write at once is all there."""
    ports = [free_port(), free_port()]
    nodes = [demo("--node", f"127.0.0.1:{p}", "--slots", "4", "--slowness", "0.01") for p in ports]
    addresses = [f"127.0.0.1:{p}" for p in ports]
    until(lambda: all(map(healthy, addresses)), "both nodes answer")

    def compose(i: int) -> int:
        user = i % 4 + 1
        body = f"username=username_{user}&user_id={user}&text=t{i} @username_9&post_type=0"
        return post(addresses[i % 2], COMPOSE, body).status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(compose, range(200)))

    assert statuses == [200] * 200
    texts = {
        p["text"]
        for user in range(1, 5)
        for p in json.loads(get(addresses[0], f"{USER}?user_id={user}&start=0&stop=50").body)
    }
    assert texts == {f"t{i} @username_9" for i in range(200)}
    for node in nodes:
        assert node.end(signal.SIGTERM)[0] == 143
    with contextlib.closing(sqlite3.connect(tmp_path / "var/demo/social.db")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*) FROM users").fetchone() == (30,)


def test_stopping_node_answers(demo: Callable[..., Demo], tmp_path: Path) -> None:
    """A node that is told to end answers what it has begun."""
    address = f"127.0.0.1:{free_port()}"
    node = demo("--node", address)
    until(lambda: healthy(address), "the node answers")
    held = sqlite3.connect(tmp_path / "var/demo/social.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")

    with ThreadPoolExecutor(1) as pool:
        body = "username=username_1&user_id=1&text=last&post_type=0"
        answer = pool.submit(post, address, COMPOSE, body)
        until(
            lambda: json.loads(get(address, "/trimtab-demo/status").body)["busy"] == 1,
            "the request is being served",
        )
        node.process.send_signal(signal.SIGTERM)
        until(lambda: not healthy(address), "the node listens no more")
        held.close()
        assert answer.result().body == b"Successfully upload post\n"
    assert node.wait()[0] == 143


# As DeathStarBench's compose-post.lua and read-home-timeline.lua: whole URLs in the request
# line, text that nothing escapes.
WRK_SCRIPT = """
local base = "%s"
local kinds = {"hello @username_5", "http://a.example/b?c=d", "100%%", "a+b", '"x"', "\\\\u{e9}"}
local number = 0
request = function()
  number = number + 1
  local user = number %% 30 + 1
  local form = {["Content-Type"] = "application/x-www-form-urlencoded"}
  if number %% 2 == 0 then
    local args = "user_id=" .. user .. "&start=0&stop=10"
    return wrk.format("GET", base .. "/wrk2-api/home-timeline/read?" .. args, form)
  end
  local body = "username=username_" .. user .. "&user_id=" .. user .. "&text="
    .. table.concat(kinds, " ") .. '&media_ids=["1234"]&media_types=["png"]&post_type=0'
  return wrk.format("POST", base .. "/wrk2-api/post/compose", form, body)
end
"""


@pytest.mark.skipif(shutil.which("wrk") is None, reason="there is no wrk")
def test_wrk_with_a_lua_script_works_against_it(demo: Callable[..., Demo], tmp_path: Path) -> None:
    """wrk with a script as DeathStarBench's: every answer is 2xx, and the posts can be read."""
    _, (address, _), _ = two_nodes(demo, "--slowness", "0.1")
    script = tmp_path / "mixed.lua"
    script.write_text(WRK_SCRIPT % f"http://{address}")
    done = subprocess.run(
        ["wrk", "-t1", "-c2", "-d1s", "-s", str(script), f"http://{address}"],
        capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert "Non-2xx" not in done.stdout
    assert "Socket errors" not in done.stdout
    count = re.search(r"(\d+) requests in", done.stdout)
    assert count is not None
    assert int(count[1]) > 2
    timeline = get(address, "/wrk2-api/user-timeline/read?user_id=2&start=0&stop=1").body
    (newest,) = json.loads(timeline)
    assert newest["text"].startswith("hello @username_5 http://short-url/")
    assert newest["user_mentions"] == [{"user_id": "5", "username": "username_5"}]
