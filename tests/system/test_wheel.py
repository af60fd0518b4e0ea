"""The wheel: it carries all that is not Python, and its commands run from it in any directory."""

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Where each part of the tree lies in the wheel.
PLACES = {
    "python/trimtab": "trimtab",
    "conf-templates": "trimtab/data/conf-templates",
    "nginx/lua": "trimtab/data/lua",
    "proto": "trimtab/data/proto",
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    directory = tmp_path_factory.mktemp("dist")
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(argv, cwd=ROOT, capture_output=True, check=True)
    return next(directory.glob("*.whl"))


@pytest.fixture
def trimtab(wheel: Path, tmp_path: Path) -> Callable[..., str]:
    """A command of the unpacked wheel, run in an empty directory; what it prints."""
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path / "site")
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(*arguments: str) -> str:
        argv = [sys.executable, "-P", "-m", "trimtab", *arguments]
        environment = {"PYTHONPATH": str(tmp_path / "site"), "PATH": "/usr/sbin:/usr/bin:/bin"}
        done = subprocess.run(argv, cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_the_wheel_carries_every_file(wheel: Path) -> None:
    """Python, generated code, Lua, templates, proto, dashboard and scenarios, to the byte."""
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        for part, place in PLACES.items():
            # What Python and numba cache beside the code stays at home.
            files = [
                f for f in (ROOT / part).rglob("*") if f.is_file() and "__pycache__" not in f.parts
            ]
            assert files, part
            for file in files:
                name = f"{place}/{file.relative_to(ROOT / part)}"
                assert name in names, name
                assert packed.read(name) == file.read_bytes(), name
    assert not [n for n in names if n.startswith("tests") or "__pycache__" in n]


def test_its_commands_find_what_they_need(trimtab: Callable[..., str], tmp_path: Path) -> None:
    """Outside of a checkout `lua-path` names the wheel's Lua, and `render` uses its templates."""
    lua = trimtab("lua-path").strip()
    (tmp_path / "empty" / "trimtab.toml").write_text(
        '[[upstream]]\nname = "api"\nlocation = "/"\n[[upstream.peer]]\naddress = "127.0.0.1:9"\n'
    )
    trimtab("render", "--config", "trimtab.toml", "--output", "out")

    assert lua == str(tmp_path / "site" / "trimtab" / "data" / "lua")
    assert (Path(lua) / "resty" / "trimtab.lua").is_file()
    assert f'"{lua}/?.lua;;"' in (tmp_path / "empty" / "out" / "nginx.conf").read_text()
