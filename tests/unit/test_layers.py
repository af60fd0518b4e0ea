"""The layering: who may import whom, and which third-party package lives where.

Read from the source with ast, so that an import inside a function counts too.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "python" / "trimtab"

# From the bottom up; a row imports only from rows above it in this list, and a package freely
# from itself. The rows are the layers of the design, split where one part builds on another.
ROWS = (
    # 0: nouns, standard library only
    ("errors", "model"),
    ("alarm", "children", "logs", "notify", "paths", "sweep", "tables", "terminal", "v1"),
    # 1: the configuration and what computes without I/O
    ("allowance", "checks", "columns", "responses", "saved"),
    (
        "bounds",
        "config",
        "crowded",
        "discipline",
        "fits",
        "queued",
        "responses",
        "varints",
        "window",
    ),
    ("sums", "wire"),
    ("concurrency", "packed", "rows", "unparsed"),
    ("bearer", "estimate", "fleet", "learn", "listen", "messages", "tls"),
    ("answers", "trials"),
    ("guard",),
    # 2: what decides, reads, acts, and the worlds to act in
    ("envelope",),
    ("journal", "policy", "servers", "sources", "store", "traffic"),
    ("deciding", "overview"),
    ("observation",),
    ("actuators", "demo", "load", "twin"),
    ("explain",),
    # 3: the one who calls them
    ("controller",),
    ("assembly",),
    # 4: the policy server
    ("dashboard", "events", "metrics", "traces"),
    ("control", "server"),
    ("admin", "loop"),
    ("parts",),
    ("ha",),
    ("daemon",),
    # 5: what people start
    ("bench",),
    ("training",),
    ("cli",),
    ("__main__",),
)
ROW = {name: number for number, row in enumerate(ROWS) for name in row}

# Third-party packages and the modules that may import them; a name covers what is below it.
HOMES = {
    "sklearn": {"learn.clusters"},
    "torch": {"learn.dqn"},
    "requests": {"sources", "cli"},
    "jinja2": {"actuators.templates"},
    "trimtab.v1": {"answers", "bench.fleet_load", "messages", "packed", "unparsed", "wire"},
    "google": {"answers", "messages", "packed", "wire"},
    "grpc": {"bench.fleet_load", "server", "sweep.cluster"},
    "grpc_health": {"server"},
    "redis": {"ha.redis_store"},
    "grpc_reflection": {"server"},
    "opentelemetry": {"traces"},
    "prometheus_client": {"admin", "metrics"},
    "aiohttp": {"admin", "control", "demo", "events"},
    "matplotlib": {"bench"},
    "numba": {"twin.compiled"},
    "cmaes": {"twin.search"},
    "ray": {"sweep.cluster"},
    "crossplane": {"cli"},
}

STANDARD_LIBRARY_ONLY = ("errors", "model")


def modules() -> dict[str, Path]:
    """Every module of the package but generated code, as "learn.clusters", and its file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
        if parts and parts[0] != "v1":
            found[".".join(parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """The absolute names that a module imports; `from a import b` gives "a.b"."""
    path = MODULES[module]
    base = ["trimtab", *module.split(".")]
    if path.name != "__init__.py":
        base.pop()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                origin = ".".join([*base[: len(base) - node.level + 1], *origin.split(".")])
            yield from (f"{origin}.{alias.name}".replace("..", ".") for alias in node.names)


def within(name: str, prefixes: set[str]) -> bool:
    """Whether a dotted name is one of `prefixes` or below one."""
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def test_every_module_has_a_layer() -> None:
    """A new module must be given its place in ROWS, above."""
    homeless = {m.partition(".")[0] for m in MODULES} - set(ROW)
    assert not homeless, f"give {sorted(homeless)} a row in tests/unit/test_layers.py"


@pytest.mark.parametrize("module", MODULES)
def test_layer_imports_only_lower_ones(module: str) -> None:
    """No module imports from its own row or a later one, but for its own package."""
    own = module.partition(".")[0]
    for name in imports(module):
        parts = name.split(".")
        if parts[0] == "trimtab" and len(parts) > 1 and parts[1] in ROW and parts[1] != own:
            assert ROW[parts[1]] < ROW[own], f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("module", MODULES)
def test_third_party_packages_stay_at_home(module: str) -> None:
    """Heavy packages are imported where they are needed and nowhere else."""
    for name in imports(module):
        for package, homes in HOMES.items():
            if within(name, {package}):
                assert within(module, homes), f"{module} imports {name}; only {sorted(homes)} may"


@pytest.mark.parametrize("module", STANDARD_LIBRARY_ONLY)
def test_nouns_need_the_standard_library_only(module: str) -> None:
    """Data and errors import nothing that must be installed."""
    for name in imports(module):
        top = name.partition(".")[0]
        assert top in sys.stdlib_module_names or top == "trimtab", f"{module} imports {name}"


def test_imports_are_seen_wherever_they_stand() -> None:
    """The reader of imports finds those inside functions and under both spellings."""
    assert "trimtab.daemon" in set(imports("cli.serve"))
    assert "trimtab.v1.policy_pb2" in set(imports("messages"))
    assert "grpc_health.v1.health" in set(imports("server"))
