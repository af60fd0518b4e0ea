"""What is in ops/: it loads, and names only metrics and labels that exist."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trimtab.metrics import FAMILIES

OPS = Path(__file__).parents[2] / "ops"
DASHBOARD: dict[str, Any] = json.loads((OPS / "grafana-dashboard.json").read_text())
RULES = (OPS / "alerts.yml").read_text()

# The labels that Prometheus gives each target.
TARGET = {"instance", "job"}


def rules() -> list[str]:
    """The expressions of the alert rules; a folded one in one line."""
    folded = re.sub(r">-\n((?: {10}.*\n)+)", lambda m: " ".join(m[1].split()) + "\n", RULES)
    return re.findall(r"^ +expr: (.*)$", folded, re.MULTILINE)


def expressions() -> Iterator[str]:
    """Every PromQL expression of dashboard and rules."""
    for panel in DASHBOARD["panels"]:
        yield from (t["expr"] for t in panel["targets"])
    yield from (
        v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"
    )
    yield from rules()


def known() -> dict[str, set[str]]:
    """The labels of every series."""
    found: dict[str, set[str]] = {}
    for family in FAMILIES:
        labels = set(family.labels) | TARGET
        if family.kind == "histogram":
            for suffix in ("bucket", "count", "sum"):
                found[f"{family.name}_{suffix}"] = labels | {"le"}
        else:
            found[family.name] = labels
    return found


def test_there_are_expressions_to_check() -> None:
    """The readers below find them all."""
    assert len(list(expressions())) > 30
    assert len(rules()) == RULES.count("- alert: ") >= 10


@pytest.mark.parametrize("expression", sorted(set(expressions())))
def test_expressions_name_what_exists(expression: str) -> None:
    """Series and labels of every expression are those of /metrics, and brackets close."""
    series = known()
    names = re.findall(r"\btrimtab_\w+", expression)
    assert names or 'up{job="trimtab"}' in expression
    for name in names:
        assert name in series, name
    used = re.findall(r"(\w+)=~?\"", expression)
    used += [
        x.strip() for g in re.findall(r"(?:by|on) \(([^)]*)\)", expression) for x in g.split(",")
    ]
    allowed = set().union(*(series[n] for n in names)) | TARGET
    assert set(used) <= allowed
    for left, right in ("()", "{}", "[]"):
        assert expression.count(left) == expression.count(right)


def test_panels_have_places_of_their_own() -> None:
    """Unique ids, within 24 columns, none over another."""
    panels = DASHBOARD["panels"]
    assert len({p["id"] for p in panels}) == len(panels)
    cells: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (place["x"] + dx, place["y"] + dy)
            for dx in range(place["w"])
            for dy in range(place["h"])
        }
        assert not cells & own, panel["title"]
        cells |= own


@pytest.mark.skipif(
    shutil.which("promtool") is None,
    reason="no promtool here: `apt-get install prometheus` checks the alert rules with it",
)
def test_promtool_accepts_the_rules() -> None:
    """Prometheus's own check."""
    done = subprocess.run(
        ["promtool", "check", "rules", str(OPS / "alerts.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr + done.stdout
