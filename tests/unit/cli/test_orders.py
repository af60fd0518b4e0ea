"""The commands that order and explain, against a real admin endpoint; typos and completion."""

import asyncio
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import operators
import serving
from trimtab.actuators.board import Board
from trimtab.admin import Admin
from trimtab.cli import COMMANDS, main
from trimtab.cli.explain import render
from trimtab.metrics import Metrics
from trimtab.sources.reported import Reported

FACTS: dict[str, Any] = {
    "weight": 1.25,
    "pinned": True,
    "withheld": None,
    "affinity": 0.5,
    "rate": 2.0,
    "rate_prior": 1.9,
    "slots": 4.0,
    "error_ratio": 0.05,
    "drain": False,
    "down": False,
    "ejection": "",
    "in_flight": 3.0,
    "in_flight_class": 2.0,
    "work_seconds": 0.03,
    "own_seconds": 0.005,
    "wait_seconds": 0.012,
    "score": 0.0136,
    "rank": 1,
}
TOLD: dict[str, Any] = {
    "upstream": "compose_backend",
    "instance": "nginx-1",
    "instances": 3,
    "generation": 41,
    "in_use": 40,
    "reason": "estimates",
    "changed": 1000.0,
    "profile": "neutral",
    "chosen": "fast",
    "shadow": True,
    "decision": "best",
    "state": 2,
    "deadline_seconds": 0.15,
    "service_time_seconds": 0.0123,
    "peers": {
        "192.168.100.100:65535": FACTS,
        "192.168.100.101:65535": {**FACTS, "rank": None, "drain": True, "slots": 0.0},
        "192.168.100.102:65535": {**FACTS, "rank": None, "down": True, "ejection": "failures"},
    },
    "last_change": {
        "from": 40,
        "to": 41,
        "reason": "drained 192.168.100.101:65535",
        "deadline_seconds": [None, 0.15],
        "peers": {"192.168.100.101:65535": {"drain": [False, True], "rate": [1.0, 1.9]}},
    },
    "last_decision": {"time": 990.0, "generation": 39, "reason": "fast: exploring"},
}


@contextmanager
def answering(listen: str, orders: operators.Orders, token: str | None) -> Iterator[None]:
    """An admin endpoint over `orders`."""
    checked = serving.configuration(admin_listen=listen)
    metrics = Metrics(Reported(checked), Board())
    control = operators.control(checked, metrics, orders, token)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(serving.TIMEOUT)

    admin = Admin(checked, lambda: {"upstreams": {}}, lambda: None, metrics, orders, control)
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


@pytest.fixture(autouse=True)
def known_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who orders."""
    monkeypatch.setattr("trimtab.cli.admin_client._who", lambda: "ada@here")
    monkeypatch.delenv("TRIMTAB_TOKEN", raising=False)


@pytest.mark.parametrize(
    ("command", "order", "answer"),
    [
        (
            ["pin", "u0", "10.0.0.1:80", "1.5", "--why", "cache"],
            ("pin", "u0", "10.0.0.1:80", 1.5, "ada@here", "cache"),
            "10.0.0.1:80 in u0 is pinned at W 1.5",
        ),
        (
            ["unpin", "u0", "10.0.0.1:80"],
            ("pin", "u0", "10.0.0.1:80", None, "ada@here", ""),
            "10.0.0.1:80 in u0 is no longer pinned",
        ),
        (
            ["drain", "10.0.0.2:80"],
            ("drain", "10.0.0.2:80", True, "ada@here", ""),
            "10.0.0.2:80 is drained: it finishes what it has and gets nothing new",
        ),
        (
            ["undrain", "10.0.0.2:80"],
            ("drain", "10.0.0.2:80", False, "ada@here", ""),
            "10.0.0.2:80 gets requests again",
        ),
        (
            ["shadow", "on"],
            ("shadow", True, "ada@here", ""),
            "shadow is on: Trimtab decides and tells, every W goes to 1",
        ),
        (
            ["shadow", "off"],
            ("shadow", False, "ada@here", ""),
            "shadow is off: what is learned comes into force",
        ),
    ],
)
def test_order_reaches_the_operator(
    listen: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
    order: tuple,
    answer: str,
) -> None:
    """Each command sends its order with the token and who asks, and prints what was done."""
    monkeypatch.setenv("TRIMTAB_TOKEN", operators.TOKEN)
    orders = operators.Orders()
    with answering(listen, orders, operators.TOKEN):
        assert main([*command, "--admin", listen]) == 0
    assert orders.given == [order]
    assert capsys.readouterr().out == answer + "\n"


def test_token_comes_from_the_configuration_or_a_file(listen: str, tmp_path: Path) -> None:
    """The file that the server reads serves the command line too."""
    token = tmp_path / "token"
    token.write_text(operators.TOKEN + "\n")
    path = tmp_path / "trimtab.toml"
    path.write_text(
        f'[policy]\nadmin_listen = "{listen}"\ntoken_file = "{token}"\n'
        '[[upstream]]\nname = "u"\nlocation = "/"\n[[upstream.peer]]\naddress = "127.0.0.1:1"\n'
    )
    orders = operators.Orders()
    with answering(listen, orders, operators.TOKEN):
        assert main(["shadow", "on", "--config", str(path)]) == 0
        assert main(["shadow", "off", "--admin", listen, "--token-file", str(token)]) == 0
    assert [o[1] for o in orders.given] == [True, False]


@pytest.mark.parametrize(
    ("token", "command", "status", "message"),
    [
        (operators.TOKEN, ["drain", "10.0.0.9:80"], 2, "did you mean '10.0.0.2:80'?"),
        (operators.TOKEN, ["unpin", "u9", "10.0.0.1:80"], 2, "no upstream is called 'u9'"),
        (operators.TOKEN, ["pin", "u0", "10.0.0.1:80", "9"], 2, "it must be from 1/3 to 3"),
        ("wrong-horse-battery", ["shadow", "on"], 1, "the token is wrong"),
        (None, ["shadow", "on"], 1, "a token is needed"),
        ("short", ["shadow", "on"], 2, "$TRIMTAB_TOKEN holds no token"),
    ],
)
def test_refusal_is_one_line(
    listen: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    command: list[str],
    status: int,
    message: str,
) -> None:
    """A wrong name or number is status 2, a refused token 1; the token is never repeated."""
    if token:
        monkeypatch.setenv("TRIMTAB_TOKEN", token)
    orders = operators.Orders()
    with answering(listen, orders, operators.TOKEN):
        assert main([*command, "--admin", listen]) == status
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert token is None or token not in error
    assert orders.given == []


def test_control_that_is_off_says_what_to_do(
    listen: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a token at the server nothing can be ordered, and the message says which key."""
    monkeypatch.setenv("TRIMTAB_TOKEN", operators.TOKEN)
    with answering(listen, operators.Orders(), None):
        assert main(["shadow", "on", "--admin", listen]) == 1
    assert "set token_file" in capsys.readouterr().err


def test_explanation_fits_80_columns() -> None:
    """Every line of it, with long names, drained and ejected peers and unknown slots."""
    shown = render(TOLD, full=True)
    assert max(map(len, shown.splitlines())) <= 80
    assert "shadow: W stays 1; the profile would be fast" in shown
    assert "as seen by nginx-1, which uses generation 40 (2 more: --balancer NAME)" in shown
    assert "  192.168.100.101:65535: drain off to on, rate 1 to 1.9" in shown
    assert "weight W        1.250, pinned by the operator" in shown
    assert "last decision: generation 39" in shown
    rows = [line.split()[:3] for line in shown.splitlines() if line.startswith("192.")]
    assert rows == [
        ["192.168.100.100:65535", "1", "13.6"],
        ["192.168.100.101:65535", "drain", "13.6"],
        ["192.168.100.102:65535", "failures", "13.6"],
    ]


def test_explain_asks_and_prints(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The query reaches the server; --json gives its answer as it is."""
    asked: list[tuple] = []

    class Explaining(operators.Orders):
        def explain(self, *arguments: Any) -> dict[str, Any]:
            """Remember what was asked."""
            asked.append(arguments)
            return TOLD

    with answering(listen, Explaining(), None):
        assert main(["explain", "a b", "p:1", "--balancer", "n&1", "--admin", listen]) == 0
        assert capsys.readouterr().out == render(TOLD, full=True) + "\n"
        assert main(["explain", "u0", "--json", "--admin", listen]) == 0
        assert json.loads(capsys.readouterr().out) == TOLD
    assert asked == [("a b", "p:1", "n&1"), ("u0", None, None)]


def test_explain_of_an_unknown_upstream(listen: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The server's words, as a wrong argument."""
    with answering(listen, operators.Orders(), None):
        assert main(["explain", "absent", "--admin", listen]) == 2
    assert capsys.readouterr().err == "trimtab: no upstream is called 'absent'\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["stauts"], "status"),
        (["status", "--wacth"], "--watch"),
        (["completion", "fihs"], "fish"),
    ],
)
def test_a_typo_gets_a_suggestion(
    typed: list[str], meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown command, option or choice ends with status 2 and the closest one."""
    with pytest.raises(SystemExit) as ended:
        main(typed)
    assert ended.value.code == 2
    assert f"did you mean {meant!r}?" in capsys.readouterr().err


def script(shell: str) -> str:
    """The completion script of a shell, made in a process of its own."""
    code = (
        "import sys\nfrom trimtab.cli import main\n"
        f"status = main(['completion', {shell!r}])\n"
        "heavy = {'torch', 'sklearn', 'grpc', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'{heavy} imported' if heavy else status)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_names_every_command_and_parses(shell: str, tmp_path: Path) -> None:
    """The script is made without heavy imports; where the shell is installed it parses."""
    text = script(shell)
    for command in COMMANDS:
        assert command in text
    assert "--watch" in text or "-l watch" in text
    if shutil.which(shell):
        path = tmp_path / "script"
        path.write_text(text)
        subprocess.run([shell, "-n", str(path)], check=True)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["trimtab", "sha"], {"shadow"}),
        (["trimtab", "shadow", "o"], {"on", "off"}),
        (["trimtab", "status", "--wa"], {"--watch"}),
        (["trimtab", "serve", "--log-level", "d"], {"debug"}),
        (["trimtab", "check-config", "trim"], {"trimtab.toml"}),
        (["trimtab", "serve", "--config", "trim"], {"trimtab.toml"}),
    ],
)
def test_bash_completes(words: list[str], expected: set[str], tmp_path: Path) -> None:
    """In a real bash: commands, choices, options, values of options, files."""
    (tmp_path / "trimtab.toml").touch()
    (tmp_path / "completion").write_text(script("bash"))
    line = " ".join(f"'{w}'" for w in words)
    ask = (
        f"source completion; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _trimtab; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", ask], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) == expected
