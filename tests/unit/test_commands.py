"""README, Makefile, CI and the command line name the same things."""

import re
import subprocess
from pathlib import Path

import pytest

from trimtab import config
from trimtab.cli import COMMANDS

ROOT = Path(__file__).parents[2]
CONTRACT = ("run", "test", "check", "bench", "render-conf", "train", "help")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def make(*arguments: str) -> str:
    """What make would do, without doing it."""
    return subprocess.run(
        ["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize("target", CONTRACT)
def test_the_promised_targets_exist(target: str) -> None:
    """Every target that the project promises can be made."""
    assert make(target)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_documents_name_only_what_exists(document: Path) -> None:
    """A `make X` or `trimtab X` in a document is a target or a command of this version."""
    text = document.read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL))
    for target in re.findall(r"\bmake ([a-z][a-z-]*)", code):
        assert make(target), target
    # Balancers of the benchmark are called trimtab and trimtab-hold, among others.
    code = re.sub(r"--balancer( [a-z][a-z-]*)+", "", code)
    for command in re.findall(r"\btrimtab ([a-z][a-z-]*)", code):
        assert command in COMMANDS, f"{document.name} names `trimtab {command}`"


def test_readme_shows_the_two_commands() -> None:
    """The README's commands for running and testing are `make run` and `make test`."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))
    assert re.search(r"^make run\b", blocks, re.MULTILINE)
    assert re.search(r"^make test\b", blocks, re.MULTILINE)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: str(d.relative_to(ROOT)))
def test_configurations_in_documents_are_valid(document: Path) -> None:
    """A TOML block that names an upstream is a configuration that loads."""
    for text in re.findall(r"```toml\n(.*?)```", document.read_text(), re.DOTALL):
        if "[[upstream]]" in text:
            assert config.parse(text, str(document)).upstreams


def test_ci_runs_the_readmes_test_command() -> None:
    """CI is the developer's own commands."""
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^make test\b", script, re.MULTILINE)
    assert re.search(r"^make lint\b", script, re.MULTILINE)


def test_run_passes_its_argument_on() -> None:
    """`make run ARGS=stats.json` is the founding project's command."""
    assert re.search(r"trimtab run stats\.json$", make("run", "ARGS=stats.json"), re.MULTILINE)


def test_targets_use_commands_that_exist() -> None:
    """Each `trimtab X` that a target runs is a command."""
    recipes = make("run", "bench", "train", "render-conf")
    named = re.findall(r"trimtab ([a-z][a-z-]*)", recipes)
    assert named
    assert set(named) <= set(COMMANDS)


def test_help_lists_every_contract_target() -> None:
    """`make help`, the default, lists the promised targets."""
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in CONTRACT:
        assert re.search(rf"^  make {target}\b", listed, re.MULTILINE), target
