"""`trimtab render`: what a user gets, and that the real nginx and systemd accept it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from nginxes import toml
from trimtab.cli import main


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file."""
    path = tmp_path / "trimtab.toml"
    path.write_text(toml(tmp_path))
    return path


def render(file: Path, output: Path, *more: str) -> int:
    """Run the command on a file."""
    return main(["render", "--config", str(file), "--output", str(output), *more])


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--access-log"],
        ["--balancer", "round_robin"],
        ["--balancer", "least_conn", "--layout", "one_group"],
        ["--balancer", "random_two"],
    ],
)
def test_the_real_nginx_accepts_what_is_rendered(
    options: list[str], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--check` has nginx's own approval for every balancer, and says so."""
    assert render(file, tmp_path / "out", "--check", *options) == 0
    shown = capsys.readouterr().out
    assert "accepts it" in shown
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "logs",
        "nginx.conf",
        "trimtab.json",
        "upstreams.conf",
    ]


def test_the_printed_command_is_the_one_that_runs_it(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command for checking, pasted as it is, succeeds, blanks in the directory included."""
    assert render(file, tmp_path / "an output") == 0
    (line,) = [s for s in capsys.readouterr().out.splitlines() if s.startswith("check it: ")]
    done = subprocess.run(
        ["sh", "-c", line.removeprefix("check it: ")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "test is successful" in done.stderr


def test_rendering_again_changes_nothing(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second run says that all is unchanged."""
    render(file, tmp_path / "out")
    capsys.readouterr()
    render(file, tmp_path / "out")
    shown = capsys.readouterr().out
    assert "wrote" not in shown
    assert shown.count("unchanged:") == 3


def test_what_nginx_refuses_is_not_written(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --check a refused configuration leaves the directory as it was."""
    output = tmp_path / "out"
    render(file, output)
    before = {p.name: p.read_text() for p in output.iterdir() if p.is_file()}
    capsys.readouterr()
    # The same address twice: only nginx minds.
    text = file.read_text()
    listen = text.partition("internal_listen = ")[2].partition("\n")[0]
    file.write_text(text.replace("listen = [", f"listen = [{listen}, {listen}, "))
    assert render(file, output, "--check") != 0
    told = capsys.readouterr().err
    assert "duplicate listen" in told
    assert "nothing was written" in told
    assert ".check-" not in told
    assert {p.name: p.read_text() for p in output.iterdir() if p.is_file()} == before
    assert sorted(p.name for p in output.iterdir() if p.is_dir()) == ["logs"]


@pytest.mark.parametrize("options", [[], ["--check"]])
def test_a_file_in_the_way_is_one_sentence(
    options: list[str], file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no directory can be made, that is said, and the file stays."""
    (tmp_path / "out").write_text("mine")
    assert render(file, tmp_path / "out", *options) == 1
    told = capsys.readouterr().err
    assert f"cannot write {tmp_path / 'out'}" in told
    assert "nothing was written" in told
    assert (tmp_path / "out").read_text() == "mine"


def test_stock_mode_is_rendered_without_the_module(file: Path, tmp_path: Path) -> None:
    """A machine without VTS can render for one that has it."""
    assert render(file, tmp_path / "out", "--mode", "stock", "--vts-module", "/x/vts.so") == 0
    text = (tmp_path / "out" / "nginx.conf").read_text()
    assert 'load_module "/x/vts.so";' in text
    assert "vhost_traffic_status_zone" in text


@pytest.mark.parametrize(
    ("options", "status", "told"),
    [
        (["--vts-module", "/x.so"], 2, "add --mode stock"),
        (["--layout", "one_group"], 2, "needs the layout per_class"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: list[str],
    status: int,
    told: str,
    file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Exit status 2 with one sentence, and nothing is written."""
    assert render(file, tmp_path / "out", *options) == status
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_unit_satisfies_systemd(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`systemd-analyze verify` has nothing to say about the rendered unit."""
    file.write_text(file.read_text().replace(f"{tmp_path}/state", "var/trimtab"))
    assert render(file, tmp_path / "out", "--unit") == 0
    unit = tmp_path / "out" / "trimtab.service"
    assert str(unit) in capsys.readouterr().out
    assert [p.name for p in unit.parent.iterdir() if p.is_file()] == ["trimtab.service"]
    assert f'serve --config "{file}"' in unit.read_text()
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here; tests/unit/actuators has checked the structure")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_service_that_could_not_read_its_files_is_told(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The service's own user cannot enter a private directory: the command warns."""
    tmp_path.chmod(0o700)
    file.write_text(file.read_text().replace(f"{tmp_path}/state", "var/trimtab"))
    assert render(file, tmp_path / "out", "--unit") == 0
    assert f"cannot reach {file}" in capsys.readouterr().err
