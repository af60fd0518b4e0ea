"""A real nginx of our own: started, asked, reloaded, stopped, and never left behind."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from nginxes import answering, configuration
from trimtab.actuators.nginx_process import NginxProcess, check
from trimtab.errors import DependencyError, TrimtabError

PLAIN = {"observe": False, "balancer": "least_conn"}


def wait_until(true: Callable[[], bool]) -> None:
    """Fail unless it becomes true within a generous time."""
    give_up = time.monotonic() + 20
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def get(address: str, path: str, **headers: str) -> tuple[int, str]:
    """Status and body of a GET."""
    with contextlib.closing(http.client.HTTPConnection(address, timeout=10)) as connection:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


def test_it_serves_and_leaves_nothing(tmp_path: Path) -> None:
    """Requests are proxied over keep-alive with their Host; after the end no process is left."""
    with answering() as backend:
        config = configuration(tmp_path, peers=[backend])
        address = config.nginx.listen[0]
        with NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN) as nginx:
            assert get(address, "/read/1") == (200, f"{address} None")
            assert get(address, "/etc/passwd")[0] == 404
            processes = [nginx.pid, *nginx.workers()]
            assert len(processes) == 2
    assert not any(alive(pid) for pid in processes)
    assert not nginx.running
    assert not (tmp_path / "nginx" / "nginx.pid").exists()


def test_only_websocket_upgrades_pass(tmp_path: Path) -> None:
    """Other upgrades, as h2c, would let clients speak to servers past the balancer."""
    with answering() as backend:
        config = configuration(tmp_path, peers=[backend])
        address = config.nginx.listen[0]
        with NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN):
            websocket = get(address, "/read", Connection="upgrade", Upgrade="WebSocket")
            h2c = get(address, "/read", Connection="upgrade", Upgrade="h2c")
    assert websocket == (200, f"{address} upgrade")
    assert h2c == (200, f"{address} None")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give workers another user")
def test_workers_of_root_have_no_rights_and_can_buffer_bodies(tmp_path: Path) -> None:
    """Started by root, workers run as another user, to whom the temporary directories belong."""
    for parent in (tmp_path, *tmp_path.parents[:-2]):
        if parent.stat().st_mode & 0o777 == 0o700:
            parent.chmod(0o711)
    config = configuration(tmp_path)
    with NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN) as nginx:
        owners = {Path(f"/proc/{pid}").stat().st_uid for pid in nginx.workers()}
        assert owners
        assert 0 not in owners
        body = tmp_path / "nginx" / "temp_client_body"
        assert {body.stat().st_uid} == owners
        assert (tmp_path / "nginx" / "nginx.conf").stat().st_uid == 0


@pytest.mark.parametrize("key", ["listen", "internal_listen"])
def test_a_port_in_use_is_named_before_anything_starts(key: str, tmp_path: Path) -> None:
    """The message has the address, the key and a command that shows who uses it."""
    config = configuration(tmp_path)
    address = {"listen": config.nginx.listen[0], "internal_listen": config.nginx.internal_listen}
    port = int(address[key].rpartition(":")[2])
    nginx = NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN)
    with socket.create_server(("127.0.0.1", port)), pytest.raises(TrimtabError) as told:
        nginx.start()
    message = str(told.value)
    assert f"{key} = '{address[key]}'" in message
    assert "[nginx]" in message
    assert f"ss -ltnp 'sport = :{port}'" in message
    assert not nginx.running


def test_a_configuration_that_nginx_refuses_is_told_in_its_words(tmp_path: Path) -> None:
    """The error quotes nginx's own message with file and line, and nothing runs."""
    nginx = NginxProcess.rendered(tmp_path / "nginx", configuration(tmp_path), **PLAIN)
    conf = tmp_path / "nginx" / "nginx.conf"
    conf.write_text(conf.read_text().replace("server_tokens off", "server_tokenz off"))
    with pytest.raises(TrimtabError, match=r'unknown directive "server_tokenz" in \S+:\d+'):
        nginx.start()
    assert not nginx.running


def test_vts_directives_without_the_module_name_the_remedy(tmp_path: Path) -> None:
    """An nginx without VTS refuses the stock configuration: a DependencyError says what to do."""
    nginx = NginxProcess.rendered(tmp_path / "nginx", configuration(tmp_path), mode="stock")
    if "load_module" in (tmp_path / "nginx" / "nginx.conf").read_text():
        pytest.skip("this nginx has the VTS module")
    with pytest.raises(DependencyError, match="--vts-module"):
        check(nginx.installation, nginx.directory)


def test_a_reload_takes_the_new_configuration(tmp_path: Path) -> None:
    """After `reload` a new worker serves what was written, in the same master."""
    config = configuration(tmp_path)
    with NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN) as nginx:
        master, before = nginx.pid, nginx.workers()
        conf = tmp_path / "nginx" / "nginx.conf"
        conf.write_text(conf.read_text().replace("return 404", "return 410"))
        nginx.reload()
        assert nginx.pid == master
        assert nginx.workers() - before
        wait_until(lambda: get(config.nginx.listen[0], "/other")[0] == 410)


def test_a_reload_that_nginx_refuses_changes_nothing(tmp_path: Path) -> None:
    """A broken configuration is refused before the signal: the same workers go on."""
    config = configuration(tmp_path)
    with NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN) as nginx:
        before = nginx.workers()
        (tmp_path / "nginx" / "nginx.conf").write_text("rubbish")
        with pytest.raises(TrimtabError, match="refuses"):
            nginx.reload()
        assert nginx.workers() == before
        assert nginx.answers()


def test_stopping_lets_requests_end(tmp_path: Path) -> None:
    """A request under way when `stop` begins gets its answer."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        config = configuration(tmp_path, peers=[f"127.0.0.1:{backend.getsockname()[1]}"])
        nginx = NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN)
        with nginx:
            host, port = config.nginx.listen[0].split(":")
            with socket.create_connection((host, int(port)), timeout=20) as client:
                client.sendall(b"GET /read HTTP/1.0\r\n\r\n")
                peer, _ = backend.accept()
                with peer:
                    peer.recv(4096)
                    os.kill(nginx.pid, signal.SIGQUIT)
                    wait_until(lambda: not nginx.answers())
                    peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.endswith(b"\r\n\r\nok")


def test_stopping_does_not_wait_for_ever(tmp_path: Path) -> None:
    """A request that does not end is cut after the grace period."""
    with socket.create_server(("127.0.0.1", 0)) as backend:
        config = configuration(tmp_path, peers=[f"127.0.0.1:{backend.getsockname()[1]}"])
        nginx = NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN)
        nginx.start()
        try:
            host, port = config.nginx.listen[0].split(":")
            with socket.create_connection((host, int(port)), timeout=20) as client:
                client.sendall(b"GET /read HTTP/1.0\r\n\r\n")
                with backend.accept()[0]:
                    pids = [nginx.pid, *nginx.workers()]
                    nginx.stop(grace_seconds=0.05)
                    assert not any(alive(pid) for pid in pids)
        finally:
            nginx.stop(0.0)


def test_workers_of_a_killed_master_are_ended(tmp_path: Path) -> None:
    """After kill -9 of the master its workers still serve; `stop` ends them too."""
    config = configuration(tmp_path)
    with NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN) as nginx:
        workers = nginx.workers()
        os.kill(nginx.pid, signal.SIGKILL)
        wait_until(lambda: not nginx.running)
        assert all(alive(pid) for pid in workers)
    wait_until(lambda: not any(alive(pid) for pid in workers))


def test_nothing_outlives_a_killed_parent(tmp_path: Path) -> None:
    """kill -9 of the program that started nginx ends master and workers."""
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom nginxes import configuration\n"
        "from trimtab.actuators.nginx_process import NginxProcess\n"
        "d = Path(sys.argv[1])\n"
        "n = NginxProcess.rendered(d / 'nginx', configuration(d), observe=False,"
        " balancer='least_conn')\n"
        "n.start()\nprint(n.pid, *n.workers(), flush=True)\ntime.sleep(60)\n"
    )
    tests = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": tests},
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    wait_until(lambda: not any(alive(pid) for pid in pids))


def test_a_unix_socket_will_do(tmp_path: Path) -> None:
    """Internal and client addresses may be unix sockets."""
    config = configuration(tmp_path)
    config = replace(
        config,
        nginx=replace(
            config.nginx,
            internal_listen=f"unix:{tmp_path}/internal",
            listen=(*config.nginx.listen, f"unix:{tmp_path}/clients"),
        ),
    )
    with NginxProcess.rendered(tmp_path / "nginx", config, **PLAIN) as nginx:
        assert nginx.answers()


@pytest.mark.parametrize("odd", ['a "quoted" name', "semi;colon } {brace", "back\\slash", "ünï"])
def test_any_directory_will_do(odd: str, tmp_path: Path) -> None:
    """nginx accepts a lua-mode configuration in a directory of any name, quotes and all."""
    nginx = NginxProcess.rendered(tmp_path / odd / "nginx", configuration(tmp_path))
    check(nginx.installation, nginx.directory)
