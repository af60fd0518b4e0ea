"""What describes the packages: the Lua library's for LuaRocks and OPM, the image and the demo in
containers. No container engine is needed: what they name is compared with what there is."""

import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from trimtab.cli import COMMANDS, parser

ROOT = Path(__file__).parents[2]
LUA = ROOT / "nginx" / "lua"
PACKAGING = ROOT / "packaging"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ROCKSPEC = next((ROOT / "nginx").glob("*.rockspec"))
COMPOSE = yaml.safe_load((PACKAGING / "compose.yml").read_text())

# Loads a rockspec as LuaRocks does, with nothing in reach, and prints what it says.
LOAD = """
local spec = {}
local chunk = assert(loadfile(arg[1]))
setfenv(chunk, spec)
chunk()
print(spec.package)
print(spec.version)
for name, file in pairs(spec.build.modules) do print(name .. " " .. file) end
"""


def instructions(name: str = "Dockerfile") -> list[list[str]]:
    """The instructions of a Dockerfile, each as its words."""
    text = (PACKAGING / name).read_text()
    text = re.sub(r"(?m)^#.*\n", "", text).replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip()]


def command(words: list[str]) -> str:
    """The command of a command line, which the parser must accept."""
    arguments = parser(COMMANDS).parse_args(words)
    return str(arguments.command)


def test_the_rockspec_lists_every_module(tmp_path: Path) -> None:
    """It loads in Lua, is named by package and version, and maps each module to its file."""
    lua = shutil.which("luajit") or shutil.which("lua5.1")
    if lua is None:
        pytest.skip("no luajit or lua5.1 here: `apt-get install luajit`")
    script = tmp_path / "load.lua"
    script.write_text(LOAD)
    said = subprocess.run([lua, script, ROCKSPEC], capture_output=True, text=True, check=True)
    package, version, *modules = said.stdout.splitlines()

    assert ROCKSPEC.name == f"{package}-{version}.rockspec"
    assert version.rpartition("-")[0] == PROJECT["version"]
    assert sorted(modules) == sorted(
        f"{'.'.join(file.relative_to(LUA).with_suffix('').parts)} {file.relative_to(ROOT)}"
        for file in LUA.rglob("*.lua")
    )


def test_opm_is_told_the_same() -> None:
    """dist.ini has this version and license, and its library directory is the one there is."""
    lines = (ROOT / "nginx" / "dist.ini").read_text().splitlines()
    keys = dict(line.split(" = ", 1) for line in lines if not line.startswith("#"))

    assert keys["version"] == PROJECT["version"]
    assert keys["license"] == "apache2"
    assert (ROOT / "nginx" / keys["lib_dir"] / "resty" / "trimtab.lua").is_file()
    needed = {"name", "abstract", "author", "is_original", "repo_link", "requires"}
    assert needed <= set(keys)


def test_the_image_copies_what_there_is() -> None:
    """Every file that the Dockerfile copies exists, and its ignore file lets it through."""
    ignore = (PACKAGING / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    copied = [w[1:-1] for w in instructions() if w[0] == "COPY" and "--from=build" not in w]
    names = {name for words in copied for name in words}

    assert len(names) >= 6
    for name in names:
        assert (ROOT / name).exists(), name
        assert any(fnmatch.fnmatch(name, k) or name.startswith(f"{k}/") for k in kept), name
    # What the build reads of the tree beside them.
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    included = wheel["targets"]["wheel"]["force-include"]
    assert {p.partition("/")[0] for p in included} <= names
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= names


def test_the_image_has_the_packages_of_setup() -> None:
    """nginx and its parts are those that scripts/setup installs."""
    setup = (ROOT / "scripts" / "setup").read_text()
    needed = re.search(r"(?m)^packages=\((.*)\)", setup)
    assert needed is not None
    runs = [" ".join(w) for w in instructions() if w[0] == "RUN"]

    assert all(re.search(rf"\b{p}\b", runs[-1]) for p in needed[1].split())


def test_the_image_starts_a_command_that_exists() -> None:
    """The entry point with the default arguments is a command line that the parser takes."""
    known = {"FROM", "RUN", "COPY", "USER", "WORKDIR", "VOLUME", "ENV", "STOPSIGNAL"}
    found = instructions()
    last = {w[0]: " ".join(w[1:]) for w in found}

    assert {w[0] for w in found} == known | {"ENTRYPOINT", "CMD"}
    assert json.loads(last["ENTRYPOINT"]) == list(PROJECT["scripts"])
    assert command(json.loads(last["CMD"])) == "up"


def test_the_services_run_commands_that_exist() -> None:
    """Each service's command is one that the parser takes, and they start in order."""
    services = COMPOSE["services"]

    assert {n: command(s["command"]) for n, s in services.items()} == {
        "servers": "demo",
        "balancer": "up",
        "load": "load",
    }
    assert list(services["balancer"]["depends_on"]) == ["servers"]
    assert list(services["load"]["depends_on"]) == ["balancer"]
    for service in services.values():
        assert (PACKAGING / service["build"]["context"]).resolve() == ROOT
        assert (ROOT / service["build"]["dockerfile"]).is_file()
        for volume in service.get("volumes", ()):
            assert volume.partition(":")[0] in COMPOSE["volumes"]
        for waited in service.get("depends_on", ()):
            assert "healthcheck" in services[waited]
