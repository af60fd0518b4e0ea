"""The command line's frame: help, exit statuses, what is imported."""

import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.cli import COMMANDS, main

HEAVY = ("torch", "sklearn", "numpy", "grpc", "requests", "jinja2", "aiohttp")


def test_help_imports_nothing_heavy() -> None:
    """`trimtab --help` answers without importing a single third-party package."""
    code = (
        "import sys\nfrom trimtab.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as e:\n    assert e.code == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command that --help lists exists and explains itself."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: trimtab {command}" in capsys.readouterr().out


def test_an_error_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A configuration error is one line on stderr, without a traceback."""
    assert main(["check-config", str(tmp_path / "absent.toml")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("trimtab: ")


@pytest.mark.parametrize(
    "wrong",
    [
        ["load", "http://127.0.0.1:1/", "--rate", "abc"],
        ["load", "http://127.0.0.1:1/", "--profile", "none"],
        ["bench", "nothing"],
        ["demo", "--slowness", "0"],
        ["collect", "http://127.0.0.1:1/", "--sconds", "3", "-o", "x"],
        ["nothing"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_one_sentence(
    wrong: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """What the parser refuses is one line too, that names the argument, and status 2."""
    with pytest.raises(SystemExit) as ended:
        main(wrong)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("trimtab")
    assert not wrong or wrong[-1] in err or "--sconds" in err


@pytest.mark.parametrize("command", ["load", "collect", "demo", "bench"])
def test_help_fits_the_terminal(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line of the help is wider than a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("columns", [80, 120])
def test_the_list_of_the_benchmark_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Scenarios and balancers with what they are, every line within the terminal."""
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= columns
    assert "three-classes" in out
    assert "haproxy-maxconn" in out


def test_check_config_accepts_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """The configuration that ships is valid."""
    demo = Path(__file__).parents[2] / "conf-templates" / "demo.toml"
    assert main(["check-config", str(demo)]) == 0
    assert "3 upstreams, 3 servers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["statsu"], "there is no command 'statsu'"),
        (["statsu"], "did you mean 'status'?"),
        (["status", "--wach"], "did you mean '--watch'?"),
        (["status", "--url", "x"], "`trimtab status --help` tells more"),
        (["completion", "bsh"], "did you mean 'bash'?"),
    ],
)
def test_a_typo_gets_the_usage_that_helps(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is nearest is named, and the help of the command at hand; status 2."""
    with pytest.raises(SystemExit) as ended:
        main(argv)

    assert ended.value.code == 2
    assert said in capsys.readouterr().err
