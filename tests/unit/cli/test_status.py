"""`trimtab status`: what is drawn, and what is said when nothing answers."""

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import operators
import serving
from trimtab.actuators.board import Board
from trimtab.admin import Admin
from trimtab.cli import main
from trimtab.cli.status import render
from trimtab.metrics import Metrics
from trimtab.sources.reported import Reported


def status(peers: int = 2) -> dict[str, Any]:
    """A status with every field."""
    return {
        "generation": 41,
        "epoch": 5,
        "phase": "learning",
        "observed_seconds": 300.0,
        "observe_seconds": 120.0,
        "state": {"index": 3, "log_likelihood": -1.5, "outside": False},
        "profile": "spread",
        "upstreams": {
            "compose_backend": {
                "deadline_seconds": 0.15,
                "service_time_seconds": 0.0123,
                "peers": {
                    f"192.168.100.{n + 100}:65535": {
                        "weight": 1.25,
                        "affinity": 0.5,
                        "rate": 2.0,
                        "slots": None if n else 12.0,
                        "drain": n == 1,
                    }
                    for n in range(peers)
                },
            }
        },
        "window": {
            "compose_backend": {
                "requests_per_second": 41.25,
                "response_time_seconds": 0.0231,
                "p99_seconds": 0.1802,
                "waiting": 2.0,
                "shares": {f"192.168.100.{n + 100}:65535": 0.256 for n in range(peers)},
                "peers": {
                    f"192.168.100.{n + 100}:65535": {
                        "in_flight": 3.456,
                        "response_time_seconds": 0.2005 if n else 0.0123,
                    }
                    for n in range(peers)
                },
            }
        },
        "journal": [
            {
                "time": 0.5 + n,
                "generation": n,
                "reason": f"reason number {n} " + ("long " * 20 if n < 11 else ""),
                "changes": n,
            }
            for n in range(1, 12)
        ],
        "instances": [
            {"name": "nginx-1", "age_seconds": 0.4, "generation": 41, "sequence": 9},
            {"name": "nginx-2", "age_seconds": 200, "generation": 0, "sequence": 2},
        ],
        "server": {"version": "1", "pid": 1, "uptime_seconds": 7300, "trouble": None},
    }


@contextmanager
def answering(listen: str, shown: Callable[[], Any]) -> Iterator[None]:
    """An admin endpoint that shows what `shown` gives."""
    checked = serving.configuration(admin_listen=listen)
    board = Board()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(serving.TIMEOUT)

    metrics, orders = Metrics(Reported(checked), board), operators.Orders()
    control = operators.control(checked, metrics, orders)
    admin = Admin(checked, shown, lambda: None, metrics, orders, control)
    try:
        wait(admin.start())
        try:
            yield
        finally:
            wait(admin.stop())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(serving.TIMEOUT)
        loop.close()


@pytest.fixture
def listen(tmp_path: Path) -> str:
    """An address for the admin endpoint."""
    return f"unix:{tmp_path / 'admin'}"


def test_everything_is_in_the_table() -> None:
    """Generation, state, weights, load, deadline, balancers and decisions are all shown."""
    text = render(status())
    assert text.startswith(
        "generation 41  learning  state 3  profile spread  up 2 h\n\n"
        "compose_backend\n"
        "deadline 150 ms  mean 23.1 ms  p99 180 ms  41.2 requests/s  2 waiting\n"
    )
    lines = text.splitlines()
    assert lines[4].split() == [
        *("peer", "weight", "affinity", "rate", "slots", "in", "flight", "share", "ms"),
    ]
    assert lines[6].split() == [
        *("192.168.100.100:65535", "1.25", "0.50", "2.00", "12", "3.5", "26%", "12.3"),
    ]
    assert lines[7].split() == [
        *("192.168.100.101:65535", "drain", "0.50", "2.00", "?", "3.5", "26%", "200.5!"),
    ]
    assert "  nginx-1  reported 0.4 s ago, uses generation 41" in lines
    assert "  nginx-2  reported 3 min ago, uses generation none (static weights)" in lines
    assert lines[-1].endswith("  11  reason number 11  (11 changes)")
    assert not any("reason number 3 " in line for line in lines), "only the last eight"


def test_every_line_fits_80_columns() -> None:
    """The widest usual values stay within a terminal of 80 columns."""
    full = status(peers=5)
    for peer in full["upstreams"]["compose_backend"]["peers"].values():
        peer.update(slots=999.0, rate=12.5)
    recent = full["window"]["compose_backend"]
    for address, peer in recent["peers"].items():
        peer.update(in_flight=999.9, response_time_seconds=99.9999)
        recent["shares"][address] = 1.0
    recent.update(p99_seconds=99.9999, requests_per_second=99999.0, waiting=9999.0)
    assert max(map(len, render(full).splitlines())) <= 80


def test_unknown_values_have_a_sign() -> None:
    """Before anything is learned the table is drawn with question marks and dashes."""
    text = render({"upstreams": {"u": {"peers": {"10.0.0.1:80": {}}}}})
    assert "generation ?  ?  state none yet  profile ?" in text
    assert "u\ndeadline unknown  mean unknown  p99 unknown  0.0 requests/s  0 waiting\n" in text
    assert "balancers: none has reported" in text
    assert "no decisions" in text


def test_observation_shows_how_far_it_is() -> None:
    """Until the states are known the head says how much of the observation is done."""
    young = status() | {"phase": "observing", "observed_seconds": 12.4, "state": None}
    head = render(young).splitlines()[0]
    assert head.startswith("generation 41  observing (12 of 120 s)  state none yet  profile")


def test_colour_marks_what_is_late_and_nothing_else_changes() -> None:
    """Colour adds escapes only; the late peer's row and the one behind are red."""
    plain = render(status())
    coloured = render(status(), colour=True)
    red = [line for line in coloured.splitlines() if "\x1b[31m" in line]
    assert len(red) == 2
    assert "192.168.100.101" in red[0]
    assert "nginx-2" in red[1]
    for escape in ("\x1b[1m", "\x1b[31m", "\x1b[0m"):
        coloured = coloured.replace(escape, "")
    assert coloured == plain


def test_what_the_operator_did_is_marked() -> None:
    """Shadow above the tables, a star at a pin with its meaning, and servers that are down."""
    shown = status(3)
    address = "192.168.100.{}:65535".format
    shown["guard"] = {"shadow": True, "pins": [["compose_backend", address(100), 1.25]]}
    shown["chosen"] = "fast"
    shown["servers"] = {
        address(102): {"down": 1, "ejection": "failures"},
        address(101): {"down": 1},
    }
    lines = render(shown).splitlines()
    assert "shadow: W stays 1; the profile would be fast" in lines
    assert "* pinned by the operator" in lines
    cells = {line.split()[0]: line.split()[1] for line in lines if line.startswith("192.")}
    assert cells == {address(100): "1.25*", address(101): "drain", address(102): "failures"}
    assert max(map(len, lines)) <= 80


def test_trouble_is_told() -> None:
    """A loop in trouble is said above the table."""
    ill = status()
    ill["server"]["trouble"] = "the control loop made no step for 12.0 s"
    assert "trouble: the control loop made no step for 12.0 s" in render(ill).splitlines()


def test_command_prints_table_and_json(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fetches over a unix socket; --json gives what the server gave."""
    with answering(listen, status):
        assert main(["status", "--admin", listen]) == 0
        assert capsys.readouterr().out == render(status()) + "\n"
        assert main(["status", "--admin", listen, "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == status()


def test_command_finds_the_address_in_the_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--config gives the admin address, also one of HOST:PORT."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = tmp_path / "trimtab.toml"
    path.write_text(
        f'[policy]\nadmin_listen = "127.0.0.1:{port}"\n'
        '[[upstream]]\nname = "u"\nlocation = "/"\n[[upstream.peer]]\naddress = "127.0.0.1:1"\n'
    )
    with answering(f"127.0.0.1:{port}", status):
        assert main(["status", "--config", str(path)]) == 0
    assert "generation 41" in capsys.readouterr().out


def test_nobody_there_is_one_clear_line(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a server the message names the address and the command that starts one."""
    assert main(["status", "--admin", listen]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"trimtab: no policy server answers at {listen}: ")
    assert "`trimtab serve` starts one" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("shown", [{"hello": 1}, {"upstreams": []}, [1], None])
def test_another_server_is_not_taken_for_ours(
    listen: str, shown: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON of another kind is refused in words."""
    with answering(listen, lambda: shown):
        assert main(["status", "--admin", listen]) == 1
    assert "is not a Trimtab policy server" in capsys.readouterr().err


@pytest.mark.parametrize(
    "admin", ["localhost", "ftp://127.0.0.1:1", "http://127.0.0.1:x", "http://127.0.0.1:1/a", ":1"]
)
def test_address_that_is_none_is_refused(admin: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A malformed --admin is a wrong argument: status 2, with the forms allowed."""
    assert main(["status", "--admin", admin]) == 2
    assert "it must be HOST:PORT, http://HOST:PORT or unix:/path" in capsys.readouterr().err


def test_no_color_is_respected(
    listen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a terminal there is colour, unless NO_COLOR is set."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with answering(listen, status):
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert main(["status", "--admin", listen]) == 0
        assert "\x1b[1m" in capsys.readouterr().out
        monkeypatch.setenv("NO_COLOR", "1")
        assert main(["status", "--admin", listen]) == 0
        assert "\x1b" not in capsys.readouterr().out


def test_watch_draws_again_and_outlives_the_server(
    listen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--watch draws at every turn, says when nobody answers, and ends with Ctrl-C as 130."""
    turns: list[float] = []

    def turn(seconds: float) -> None:
        turns.append(seconds)
        if len(turns) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("trimtab.cli.status.time.sleep", turn)
    with answering(listen, status):
        assert main(["status", "--admin", listen, "--watch"]) == 130
    assert capsys.readouterr().out.count("generation 41  learning") == 3
    turns.clear()
    assert main(["status", "--admin", listen, "--watch"]) == 130
    assert capsys.readouterr().out.count("no policy server answers") == 3
