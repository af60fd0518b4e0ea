"""`trimtab apply`, `serve` and the render options of stock mode, with a running nginx."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest

from nginxes import toml as lua_toml
from stocked import PEERS, Stocked, stocked, toml
from trimtab import config
from trimtab.cli import main
from trimtab.cli.apply import learned
from trimtab.cli.status import fetch
from trimtab.errors import TrimtabError
from vts_replay import Replay, replay

PATIENCE_SECONDS = 20.0


def until(true: Callable[[], bool]) -> None:
    """Wait for something that may take a while on a busy machine."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def file_for(one: Stocked, directory: Path, stock: str = "", vts_url: str | None = None) -> Path:
    """The TOML file of a running nginx, with other keys in [stock]."""
    own = one.config
    options = {"vts_url": vts_url} if vts_url else {}
    text = toml(directory, peers=list(PEERS.values()), stock=stock, **options)
    internal = re.compile(r"^internal_listen = .*$", re.MULTILINE)
    text = internal.sub(f'internal_listen = "{own.nginx.internal_listen}"', text)
    file = directory / "trimtab.toml"
    file.write_text(text)
    return file


def test_apply_puts_the_static_weights_in_force(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once applied, again is no change; a changed weight in the file is a reload."""
    with stocked(tmp_path) as one:
        file = file_for(one, tmp_path)
        assert main(["apply", "--config", str(file)]) == 0
        assert capsys.readouterr().out.startswith("unchanged: ")
        text = file.read_text()
        file.write_text(text.replace('2:9"', '2:9"\nweight = 7'))
        assert main(["apply", "--config", str(file)]) == 0
        assert capsys.readouterr().out.startswith("in force: ")
        assert "server 127.0.0.2:9 weight=7 max_fails=3;" in one.text
        assert one.reloads == 1
    file.write_text(text)
    assert main(["apply", "--config", str(file)]) == 0
    assert "nginx does not run" in capsys.readouterr().err


def test_apply_is_for_stock_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In lua mode there is nothing to apply, and that is said."""
    file = tmp_path / "trimtab.toml"
    file.write_text(lua_toml(tmp_path))
    assert main(["apply", "--config", str(file)]) == 2
    assert "is for stock mode" in capsys.readouterr().err


def test_a_status_without_weights_is_refused() -> None:
    """What a policy server says is checked before it becomes configuration."""
    for status in ({}, {"upstreams": {"a": {"peers": {"b": {"weight": "x"}}}}}, {"upstreams": 3}):
        with pytest.raises(TrimtabError, match="status has no weights"):
            learned(status)


class Traffic:
    """Statistics of a class with two servers of unequal speed, as VTS would show them."""

    def __init__(self, page: Replay) -> None:
        self._page = page
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        began, requests = time.time(), 0
        while not self._over.wait(0.02):
            requests += 1
            rows = [
                {
                    "server": address,
                    "requestCounter": requests,
                    "responses": {"2xx": requests},
                    "responseMsecCounter": requests * milliseconds,
                }
                for address, milliseconds in zip(PEERS.values(), (1, 4), strict=True)
            ]
            # Now and then no server was alive: VTS counts that under the group's own name.
            lost = requests // 50
            rows.append({"server": "reads", "requestCounter": lost, "responses": {"5xx": lost}})
            page = {
                "loadMsec": int(began * 1000) - 60_000,
                "nowMsec": int(time.time() * 1000),
                "connections": {"active": 1, "requests": 2 * requests},
                "upstreamZones": {"reads": rows},
            }
            self._page.body = json.dumps(page).encode()


def test_serve_learns_from_vts_and_changes_nginx(tmp_path: Path) -> None:
    """The policy server reads the statistics, finds one server faster, and nginx gets its weight;
    the status tells of it, and `trimtab apply --learned` finds nothing to change."""
    keys = "reload_min_seconds = 0\nreloads_per_hour = 3600"
    with replay() as page, Traffic(page), stocked(tmp_path, stock=keys) as one:
        file = file_for(one, tmp_path, keys, page.url)
        log = (tmp_path / "log").open("wb")
        server = subprocess.Popen(
            [sys.executable, "-m", "trimtab", "serve", "--config", str(file)], stderr=log
        )
        try:
            until(lambda: "weight=1 " not in one.text or "weight=2 " in one.text)
            first, second = (
                int(line.partition("weight=")[2].split()[0])
                for line in one.text.splitlines()
                if "max_fails" in line
            )
            assert first > second
            admin = config.load(file).policy.admin_listen
            until(lambda: "reads" in fetch(admin)["window"])
            status = fetch(admin)
            assert status["stock"]["reloads"] >= 1
            assert status["stock"]["file"] == str(one.file)
            (instance,) = status["instances"]
            assert instance["name"] == "test"
            assert status["window"]["reads"]["requests_per_second"] > 0
            with urllib.request.urlopen(f"http://{admin}/metrics", timeout=5) as answer:
                assert b"trimtab_" in answer.read()
            assert main(["apply", "--learned", "--config", str(file)]) == 0
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(PATIENCE_SECONDS) == 128 + signal.SIGTERM
            log.close()
        assert one.beside == []


def test_render_writes_only_the_upstreams(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--only upstreams writes the one file and says the line that includes it; --check has nginx
    look at it; --method chooses round robin."""
    file = tmp_path / "trimtab.toml"
    file.write_text(toml(tmp_path, peers=list(PEERS.values())))
    output = tmp_path / "an output"
    arguments = ["render", "--config", str(file), "--output", str(output), "--only", "upstreams"]
    assert main([*arguments, "--check"]) == 0
    written = output / "upstreams.conf"
    assert f'include "{written}";' in capsys.readouterr().out
    assert "least_conn;" in written.read_text()
    assert sorted(p.name for p in output.iterdir()) == ["upstreams.conf"]
    assert main([*arguments, "--method", "round_robin"]) == 0
    assert "least_conn;" not in written.read_text()


def test_diff_shows_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--diff is a unified diff against what is there, and leaves it there."""
    file = tmp_path / "trimtab.toml"
    text = toml(tmp_path, peers=list(PEERS.values()))
    file.write_text(text)
    output = tmp_path / "out"
    arguments = ["render", "--config", str(file), "--output", str(output)]
    for check in ([], ["--check"]):
        assert main([*arguments, "--diff", *check]) == 0
        assert "+++ " in capsys.readouterr().out
        assert not output.exists()
    assert main(arguments) == 0
    before = (output / "upstreams.conf").read_text()
    capsys.readouterr()
    assert main([*arguments, "--diff"]) == 0
    assert capsys.readouterr().out == ""
    file.write_text(text.replace('2:9"', '2:9"\nweight = 7'))
    assert main([*arguments, "--diff"]) == 0
    shown = capsys.readouterr().out
    assert "-    server 127.0.0.2:9 weight=1 max_fails=3;" in shown
    assert "+    server 127.0.0.2:9 weight=7 max_fails=3;" in shown
    assert (output / "upstreams.conf").read_text() == before


def test_options_of_stock_mode_need_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In lua mode --only and --method are refused with the remedy."""
    file = tmp_path / "trimtab.toml"
    file.write_text(lua_toml(tmp_path))
    for option in (["--only", "upstreams"], ["--method", "round_robin"]):
        assert main(["render", "--config", str(file), *option]) == 2
        assert f"{option[0]} is for stock mode" in capsys.readouterr().err


def test_units_for_a_policy_server_without_rights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With reload = "external" the units that reload nginx are written too; without it the way
    there is told."""
    file = tmp_path / "trimtab.toml"
    text = toml(tmp_path, peers=list(PEERS.values())).replace(f"{tmp_path}/state", "var/trimtab")
    arguments = ["render", "--unit", "--config", str(file), "--output", str(tmp_path / "out")]
    file.write_text(text)
    assert main(arguments) == 0
    assert 'reload = "external"' in capsys.readouterr().err
    file.write_text(text.replace("[stock]", '[stock]\nreload = "external"'))
    assert main(arguments) == 0
    path = (tmp_path / "out" / "trimtab-nginx.path").read_text()
    assert f"PathChanged={tmp_path}/nginx/upstreams.conf\n" in path
    service = (tmp_path / "out" / "trimtab-nginx.service").read_text()
    assert "ExecStart=systemctl reload nginx.service\n" in service
    assert "trimtab-nginx.path" in capsys.readouterr().out
