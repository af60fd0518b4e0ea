"""Applying in stock mode, with the real nginx: all or nothing, whatever happens in between."""

import fcntl
import http.client
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from nginxes import answering
from ports import free_ports
from stocked import PEERS, Stocked, stocked, toml, weights, weights_of
from trimtab import config
from trimtab.actuators import nginx_process
from trimtab.actuators.governor import Governor
from trimtab.actuators.nginx_service import NginxService
from trimtab.actuators.stock import STEPS, Stock
from trimtab.config import split_address
from trimtab.errors import TrimtabError


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Stocked]:
    """A private nginx, with reloads as often as one likes and a short patience."""
    with stocked(tmp_path, stock="reload_min_seconds = 0\nverify_seconds = 3") as one:
        yield one


def accepted(of: Stocked) -> bool:
    """Whether nginx accepts the configuration as it is now."""
    try:
        nginx_process.check(of.nginx.installation, of.nginx.directory)
    except TrimtabError:
        return False
    return True


def test_weights_come_into_force(running: Stocked) -> None:
    """After apply the workers serve the new generation, and nothing is left beside the file."""
    stock = Stock(running.config)
    stock.apply(weights(7, a=1.0, b=3.0))
    assert "server 127.0.0.2:9 weight=3 max_fails=3;" in running.text
    served = NginxService(running.config).served()
    assert served is not None
    assert served.startswith("1-7-")
    assert running.reloads == 1
    assert running.beside == []
    assert stock.status()["generation"] == 7
    assert stock.status()["pending_generation"] is None


def test_without_a_material_change_nothing_is_reloaded(running: Stocked) -> None:
    """The same weights, or shares within 5%, are a new generation but no reload; small steps that
    add up are one."""
    stock = Stock(running.config)
    stock.apply(weights(1, a=1.0, b=1.0))
    before = running.reloads
    stock.apply(weights(2, a=1.0, b=1.0))
    stock.apply(weights(3, a=1.0, b=1.04))
    stock.apply(weights(4, a=1.0, b=1.08))
    assert running.reloads == before
    stock.apply(weights(5, a=1.0, b=1.12))
    assert running.reloads == before + 1


def test_draining_is_always_material(running: Stocked) -> None:
    """A drained server is down in the file, whatever its share was; and comes back."""
    stock = Stock(running.config)
    stock.apply(weights(1, a=1.0, b=1000.0))
    stock.apply(weights(2, a=1.0, b=1000.0, drain="a"))
    assert "server 127.0.0.1:9 weight=1 max_fails=3 down;" in running.text
    stock.apply(weights(3, a=1.0, b=1000.0))
    assert " down;" not in running.text
    assert running.reloads == 3


def test_the_governor_makes_weights_wait(tmp_path: Path) -> None:
    """Within the minimum of seconds the latest weights wait, and tick applies them."""
    now = [1000.0]
    with stocked(tmp_path, stock="reload_min_seconds = 30") as one:
        stock = Stock(one.config, clock=lambda: now[0], wall=lambda: time.time() + 7200)
        stock.apply(weights(1, a=1.0, b=2.0))
        stock.apply(weights(2, a=1.0, b=3.0))
        now[0] += 29
        stock.apply(weights(3, a=1.0, b=4.0))
        stock.tick()
        assert one.reloads == 1
        assert stock.status()["pending_generation"] == 3
        now[0] += 1
        stock.tick()
        assert one.reloads == 2
        assert "weight=4" in one.text
        stock.tick()
        assert one.reloads == 2


def test_the_budget_of_an_hour_holds() -> None:
    """At most so many reloads in any hour, failed ones and those before a restart included."""
    now = [0.0]
    governor = Governor(10, 3, lambda: now[0])
    governor.remember(5)
    assert governor.wait_seconds() == 5
    for _ in range(2):
        now[0] += 10
        assert governor.wait_seconds() == 0
        governor.spend()
    assert governor.count == 2
    assert governor.wait_seconds() == 3600 - 5 - 20
    now[0] = 3595.0
    assert governor.wait_seconds() == 0


def test_a_restart_of_ours_is_no_reload_more(tmp_path: Path) -> None:
    """A file that was written a moment ago counts as a reload of then, and not as one of ours."""
    with stocked(tmp_path) as one:
        stock = Stock(one.config)
        stock.apply(weights(1, a=1.0, b=9.0))
        assert one.reloads == 0
        assert stock.status()["pending_generation"] == 1
        assert stock.status()["reloads"] == 0


def test_what_nginx_refuses_changes_nothing(running: Stocked) -> None:
    """A host name that nobody resolves is found before the file is touched."""
    stock = Stock(running.config)
    stock.apply(weights(1, a=1.0, b=2.0))
    before = running.text
    peers = (*running.config.upstreams[0].peers, config.Peer(address="nowhere.invalid:1"))
    upstream = replace(running.config.upstreams[0], peers=peers)
    broken = Stock(replace(running.config, upstreams=(upstream,)))
    with pytest.raises(TrimtabError, match=r"(?s)host not found.*nothing has changed"):
        broken.apply(weights(2, a=1.0, b=3.0))
    assert running.text == before
    assert running.beside == []


def test_what_only_the_whole_configuration_shows_is_undone(running: Stocked) -> None:
    """When nginx refuses the whole with the new file, the old one comes back without a reload."""
    stock = Stock(running.config)
    stock.apply(weights(1, a=1.0, b=2.0))
    before, reloads = running.text, running.reloads
    other = running.file.with_name("nginx.conf")
    text = other.read_text()
    # The user's own group of a name that the next file will have.
    other.write_text(text.replace("http {", "http {\n upstream more { server 127.0.0.1:1; }", 1))
    more = replace(running.config.upstreams[0], name="more", location="/more")
    both = replace(running.config, upstreams=(*running.config.upstreams, more))
    with pytest.raises(TrimtabError, match=r"(?s)duplicate upstream.*is back; nginx was not rel"):
        Stock(both).apply(weights(2, a=1.0, b=3.0))
    assert running.text == before
    assert running.reloads == reloads
    assert running.beside == []


def test_a_generation_that_nobody_serves_is_undone(running: Stocked) -> None:
    """When new workers cannot start, the old file comes back and is reloaded."""
    stock = Stock(running.config)
    stock.apply(weights(1, a=1.0, b=2.0))
    before = running.text
    (taken,) = free_ports(1)
    blocked = replace(
        running.config,
        nginx=replace(running.config.nginx, internal_listen=f"127.0.0.1:{taken}"),
        stock=replace(running.config.stock, verify_seconds=0.5),
    )
    with (
        socket.create_server(("127.0.0.1", taken)),
        pytest.raises(TrimtabError, match=r"(?s)does not serve the new generation.*old .* is back"),
    ):
        Stock(blocked).apply(weights(2, a=1.0, b=3.0))
    assert running.text == before
    assert NginxService(running.config).served() is not None


def test_without_room_nothing_changes(running: Stocked) -> None:
    """When the new file cannot be written whole, the old one stays, nothing lies beside it, and
    the message names the file and the reason."""
    before = running.text
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    try:
        with pytest.raises(TrimtabError) as error:
            Stock(running.config).apply_now(weights(a=1.0, b=3.0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert re.search(r"cannot write .*trimtab-new: File too large\n  nothing has", str(error.value))
    assert running.text == before
    assert running.beside == []
    assert running.reloads == 0
    Stock(running.config).apply_now(weights(a=1.0, b=3.0))
    assert running.text != before


def test_two_writers_do_not_mix(running: Stocked) -> None:
    """While one holds the file another is refused, and changes nothing; a command waits for it."""
    before = running.text
    with running.file.with_name(f".{running.file.name}.trimtab-lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TrimtabError, match="another trimtab"):
            Stock(running.config).apply(weights(1, a=1.0, b=2.0))
        assert running.text == before
        release = threading.Timer(0.1, fcntl.flock, (lock, fcntl.LOCK_UN))
        release.start()
        assert Stock(running.config).apply_now(weights(1, a=1.0, b=2.0)) == "applied"
        release.join()


def test_a_file_of_somebody_else_is_left_alone(running: Stocked) -> None:
    """A file that Trimtab has not written is never replaced."""
    running.file.write_text("# mine\n")
    with pytest.raises(TrimtabError, match="was not written by Trimtab"):
        Stock(running.config).apply_now(weights(1, a=1.0, b=2.0))
    assert running.text == "# mine\n"


def test_an_nginx_that_does_not_run_finds_the_file_later(tmp_path: Path) -> None:
    """Without a running nginx the file is written and checked, and nothing is reloaded."""
    with stocked(tmp_path, stock="reload_min_seconds = 0") as one:
        pass
    stock = Stock(one.config)
    assert stock.apply_now(weights(1, a=1.0, b=2.0)) == "written"
    assert stock.apply_now(weights(1, a=1.0, b=2.0)) == "unchanged"
    assert "weight=2" in one.text


CRASHING = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from stocked import weights
from trimtab import config
from trimtab.actuators.stock import Stock

def step(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

Stock(config.load(sys.argv[2]), step=step).apply(weights(2, a=1.0, b=5.0))
"""


@pytest.fixture(scope="module")
def crashing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stocked, Path]]:
    """An nginx for many crashes, and the configuration's file."""
    directory = tmp_path_factory.mktemp("crashing")
    # pytest's directories are for the owner only, and nginx's workers are somebody else.
    directory.parent.chmod(0o755)
    with stocked(directory, stock="reload_min_seconds = 0\nverify_seconds = 3") as one:
        file = directory / "trimtab.toml"
        own, values = one.config, one.config.stock
        text = toml(directory, peers=list(PEERS.values()), stock="reload_min_seconds = 0")
        for key in ("internal_listen", "listen = ["):
            line = next(s for s in text.splitlines() if s.startswith(key))
            shown = {
                "internal_listen": own.nginx.internal_listen,
                "listen = [": own.nginx.listen[0],
            }
            value = f'"{shown[key]}"' if key == "internal_listen" else f'["{shown[key]}"]'
            text = text.replace(line, f"{line.partition(' = ')[0]} = {value}")
        file.write_text(text)
        assert config.load(file).stock.include_file == values.include_file
        yield one, file


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_nginx_accepts_what_is_there(
    crashing: tuple[Stocked, Path], step: str
) -> None:
    """After kill -9 at each step the configuration is accepted, it is the old or the new file as a
    whole, and the next writer brings all in order."""
    one, file = crashing
    Stock(one.config).apply_now(weights(1, a=1.0, b=2.0))
    old = one.text
    tests = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CRASHING, str(tests), str(file), step], check=False, timeout=30
    )
    assert done.returncode == -signal.SIGKILL
    assert accepted(one)
    swapped = STEPS.index(step) >= STEPS.index("swapped")
    assert (one.text != old) is swapped
    if swapped:
        assert "weight=5" in one.text
    Stock(one.config).apply(weights(3, a=1.0, b=6.0))
    served = NginxService(one.config).served()
    assert served is not None
    assert served.startswith("1-3-")
    assert "weight=6" in one.text
    assert one.beside == []


def test_a_crash_that_left_a_bad_file_is_undone_by_the_next_writer(running: Stocked) -> None:
    """When the file beside is the good one, it comes back before anything else is done."""
    stock = Stock(running.config)
    stock.apply(weights(1, a=1.0, b=2.0))
    good = running.text
    os.link(running.file, running.file.with_name(f".{running.file.name}.trimtab-old"))
    bad = running.file.with_name("bad")
    bad.write_text(good.replace("least_conn;", "no_such_directive;"))
    bad.replace(running.file)
    stock.apply(weights(2, a=1.0, b=2.0))
    assert running.text == good
    assert running.beside == []
    assert accepted(running)


def test_without_the_right_to_signal_the_remedies_are_told(
    running: Stocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the line for sudoers, the keys for [stock], and the other way by systemd;
    the old file is back."""
    before = running.text

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(TrimtabError) as caught:
        Stock(running.config).apply_now(weights(1, a=1.0, b=2.0))
    monkeypatch.undo()
    told = str(caught.value)
    assert "may not signal nginx" in told
    assert "NOPASSWD: " in told
    assert 'reload_command = ["sudo", "-n", ' in told
    assert 'reload = "external"' in told
    assert told.endswith("is back, and nginx serves it as before")
    assert running.text == before


def test_a_command_reloads_instead_of_a_signal(tmp_path: Path) -> None:
    """reload_command is run as it stands, without a shell; its failure is told and undone."""
    with stocked(tmp_path, stock="reload_min_seconds = 0\nverify_seconds = 3") as one:
        pid = str(one.nginx.pid)
        by_kill = replace(one.config.stock, reload="command", reload_command=("kill", "-HUP", pid))
        Stock(replace(one.config, stock=by_kill)).apply(weights(1, a=1.0, b=2.0))
        assert one.reloads == 1
        before = one.text
        failing = replace(by_kill, reload_command=("sh", "-c", "echo not today >&2; exit 3"))
        with pytest.raises(TrimtabError, match=r"(?s)reload_command .*not today"):
            Stock(replace(one.config, stock=failing)).apply(weights(2, a=1.0, b=3.0))
        assert one.text == before


def test_something_else_may_reload(tmp_path: Path) -> None:
    """With reload = "external" the change is waited for: here by what a path unit would do."""
    with stocked(tmp_path, stock="reload_min_seconds = 0\nverify_seconds = 5") as one:
        external = replace(one.config, stock=replace(one.config.stock, reload="external"))
        over = threading.Event()

        def watch() -> None:
            before = one.file.stat().st_mtime_ns
            while not over.wait(0.02):
                if one.file.stat().st_mtime_ns != before:
                    one.nginx.reload()
                    return

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            Stock(external).apply(weights(1, a=1.0, b=2.0))
        finally:
            over.set()
            watcher.join()
        assert one.reloads == 1


def test_pid_files_of_others_are_not_signalled(running: Stocked, tmp_path: Path) -> None:
    """A pid file that names another program, or nothing while nginx answers, is an error."""
    for content, told in ((str(os.getpid()), "not nginx"), ("", "names no running process")):
        file = tmp_path / "some.pid"
        file.write_text(content)
        stock = replace(running.config.stock, pid_file=file)
        with pytest.raises(TrimtabError, match=told):
            NginxService(replace(running.config, stock=stock)).master()


class Load:
    """Clients that ask one URL again and again, each time on a new connection."""

    def __init__(self, url: str) -> None:
        self.done = 0
        self.lost: list[str] = []
        self._url = url
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(2)]

    def _run(self) -> None:
        while not self._over.is_set():
            try:
                with urllib.request.urlopen(self._url, timeout=5) as answer:
                    answer.read()
                self.done += 1
            except OSError as error:
                self.lost.append(str(error))

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def test_reloading_under_load_loses_no_more_than_nginx_itself(tmp_path: Path) -> None:
    """Of the requests that come while weights change again and again at most as many are lost as
    with the same number of plain reloads (none, for clients that connect anew)."""
    with answering() as one, answering() as other:
        keys = "reload_min_seconds = 0\nverify_seconds = 3"
        with stocked(tmp_path, peers=[one, other], stock=keys) as running:
            url = f"http://{running.config.nginx.listen[0]}/read"
            with Load(url) as plain:
                for _ in range(4):
                    running.nginx.reload()
                    # As long as an apply takes, which sees the old workers go.
                    NginxService(running.config).wait(NginxService(running.config).served() or "")
            with Load(url) as ours:
                stock = Stock(running.config)
                for turn in range(4):
                    stock.apply(weights_of({one: 1.0, other: 2.0 + turn}, turn + 1))
            assert running.reloads == 8
    assert plain.done > 0
    assert ours.done > 0
    assert len(ours.lost) <= len(plain.lost)


class Keeping(Load):
    """Clients that keep their connections, and send a request once more when its was cut before an
    answer came, as browsers do with idempotent ones."""

    def _run(self) -> None:
        host, port = split_address(self._url.removeprefix("http://").partition("/")[0])
        kept = http.client.HTTPConnection(host, int(port), timeout=5)
        while not self._over.is_set():
            try:
                self._ask(kept)
            except (OSError, http.client.HTTPException):
                kept.close()
                try:
                    self._ask(kept)
                except (OSError, http.client.HTTPException) as error:
                    self.lost.append(str(error))
                    kept.close()
        kept.close()

    def _ask(self, kept: http.client.HTTPConnection) -> None:
        kept.request("GET", "/read")
        answer = kept.getresponse()
        answer.read()
        if answer.status != 200:
            self.lost.append(str(answer.status))
        self.done += 1


def test_clients_that_send_again_lose_nothing(tmp_path: Path) -> None:
    """With four workers and kept connections, reload after reload: no request is lost to clients
    that send again what was cut without an answer."""
    keys = "reload_min_seconds = 0\nverify_seconds = 5"
    with answering() as one, answering() as other:
        with (
            stocked(tmp_path, peers=[one, other], stock=keys, workers=4) as running,
            Keeping(f"http://{running.config.nginx.listen[0]}/read") as clients,
        ):
            stock = Stock(running.config)
            for turn in range(6):
                changed = weights_of({one: 1.0, other: 2.0 + turn}, turn + 1)
                assert stock.apply_now(changed) == "applied"
        assert running.reloads == 6
    assert clients.done > 0
    assert clients.lost == []
