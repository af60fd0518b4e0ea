"""/metrics: every family is described, valid, bounded, and as the documentation says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import serving
from trimtab import metrics
from trimtab.actuators.board import Board
from trimtab.journal import KINDS
from trimtab.metrics import FAMILIES, Metrics
from trimtab.model import BUCKET_BOUNDS_SECONDS
from trimtab.sources.reported import Reported

ROOT = Path(__file__).parents[2]
PEERS = ("10.0.0.1:80", "10.0.0.2:80")


def status() -> dict[str, Any]:
    """A controller's status with every figure that is shown."""
    pair = {
        "requests": 10.0,
        "failures": 1.0,
        "in_bytes": 100.0,
        "out_bytes": 2000.0,
        "response_time_seconds": 0.5,
        "tardy": 2.0,
        "in_flight_seconds": 0.25,
        "retries": 4.0,
        "retries_refused": 1.0,
        "tardiness": 3.5,
    }
    control = {"weight": 1.5, "affinity": 0.5, "rate": 2.0, "slots": 4.0, "drain": False}
    buckets = [0] * (len(BUCKET_BOUNDS_SECONDS) + 1)
    buckets[0], buckets[1], buckets[-1] = 12, 7, 1
    return {
        "phase": "learning",
        "profile": "fast",
        "profiles": {"neutral": "", "fast": ""},
        "state": {"index": 3, "log_likelihood": -4.5, "outside": False},
        "changed": 990.0,
        "statistics_age_seconds": 0.5,
        "stock": {"reloads": 4},
        "events": dict.fromkeys(KINDS, 2),
        "guard": {"shadow": True, "pins": [["u", PEERS[0], 1.5]]},
        "servers": {
            a: {"rate": 1.9, "error_ratio": 0.01, "down": 1, "ejected": 1, "in_flight": 2}
            for a in PEERS
        },
        "upstreams": {
            "u": {
                "deadline_seconds": 0.1,
                "service_time_seconds": 0.01,
                "peers": dict.fromkeys(PEERS, control),
            }
        },
        "window": {
            "u": {
                "art_per_1000": 350.0,
                "tardy_ratio": 0.2,
                "waiting": 1.5,
                "peers": {a: {"in_flight": 0.75} for a in PEERS},
            }
        },
        "totals": {
            "upstreams": {
                "u": {
                    "buckets": buckets,
                    "responses": [0, 18, 0, 0, 2],
                    "peers": dict.fromkeys(PEERS, pair),
                }
            },
            "ejections": {PEERS[0]: 2, PEERS[1]: 0},
        },
    }


def shown(of: dict[str, Any] | None) -> dict[tuple[str, ...], float]:
    """The samples of a scrape, by name and the values of the labels in their alphabetical order."""
    board = Board()
    own = Metrics(Reported(serving.configuration()), board, lambda: 1000.0)
    own.called("GetWeights", "OK", 0.001)
    own.controlled("pin", 200)
    own.stepped(0.01, failed=False)
    return {
        (s.name, *(v for _, v in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(own.text(of).decode())
        for s in family.samples
    }


def test_every_family_appears_and_no_other() -> None:
    """What /metrics has is what `FAMILIES` (and so the documentation) lists, and all of that."""
    names = set()
    for name, *_ in shown(status()):
        names.add(re.sub(r"_(bucket|count|sum|created)$", "", name))
    described = {f.name for f in FAMILIES}
    process = {n for n in names if n.startswith("process_")}
    # The client's own: when a counter was made.
    made = {n for n in names - process - described if f"{n}_total" in described}
    assert names - process - made == described


def test_values_are_those_of_the_status() -> None:
    """Traffic, weights, servers and the brain, in base units."""
    samples = shown(status())
    one = PEERS[0]
    assert samples["trimtab_requests_total", one, "u"] == 10
    assert samples["trimtab_tardiness_total", one, "u"] == 3.5
    assert samples["trimtab_responses_total", "5xx", "u"] == 2
    assert samples["trimtab_art_ratio", "u"] == 0.35
    assert samples["trimtab_weight_ratio", one, "u"] == 1.5
    assert samples["trimtab_peer_rate_ratio", one] == 2.0
    assert samples["trimtab_peer_down", one] == 1
    assert samples["trimtab_ejections_total", one] == 2
    assert samples["trimtab_peer_ejected", one] == 1
    assert samples["trimtab_retries_total", one, "u"] == 4
    assert samples["trimtab_retries_refused_total", one, "u"] == 1
    assert samples["trimtab_profile_info", "fast"] == 1
    assert samples["trimtab_profile_info", "neutral"] == 0
    assert samples["trimtab_generation_age_seconds",] == 10.0
    assert samples["trimtab_shadow",] == 1
    assert samples["trimtab_decisions_total", "operator"] == 2
    assert samples["trimtab_control_calls_total", "pin", "200"] == 1


def test_response_times_are_a_histogram_of_whole_octaves() -> None:
    """Cumulative counts in seconds, the last +Inf, with count and sum of all peers."""
    samples = shown(status())
    name = "trimtab_response_time_seconds"
    assert samples[f"{name}_bucket", "0.0005", "u"] == 12
    assert samples[f"{name}_bucket", "0.001", "u"] == 19
    assert samples[f"{name}_bucket", "+Inf", "u"] == 20
    assert samples[f"{name}_count", "u"] == 20
    assert samples[f"{name}_sum", "u"] == 1.0
    assert sum(key[0] == f"{name}_bucket" for key in samples) == 19


def test_too_many_pairs_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound there are series by upstream only, and one that says so."""
    monkeypatch.setattr(metrics, "MOST_PAIRS", 1)
    samples = shown(status())
    assert samples["trimtab_requests_total", "", "u"] == 20
    assert samples["trimtab_peer_series_omitted",] == 2
    assert not any(PEERS[0] in key for key in samples)
    assert samples["trimtab_deadline_seconds", "u"] == 0.1


def test_what_is_not_known_has_no_series() -> None:
    """A status of a server that has just started gives no zeros that mean nothing."""
    early = status() | {"state": None, "changed": None, "totals": {}, "window": {}}
    early["upstreams"]["u"]["deadline_seconds"] = None
    names = {key[0] for key in shown(early)}
    assert not names & {
        "trimtab_state",
        "trimtab_generation_age_seconds",
        "trimtab_deadline_seconds",
        "trimtab_requests_total",
        "trimtab_response_time_seconds_bucket",
    }
    assert "trimtab_weight_ratio" in names


def test_the_documentation_is_generated() -> None:
    """docs/metrics.md is what scripts/metrics-doc writes."""
    made = subprocess.run(
        [sys.executable, ROOT / "scripts" / "metrics-doc"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (ROOT / "docs" / "metrics.md").read_text() == made, "run scripts/metrics-doc --write"
