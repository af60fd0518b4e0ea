"""`trimtab explain`: what is told of arrivals, service and trials."""

from typing import Any

from trimtab.cli.explain import render

TOLD: dict[str, Any] = {
    "upstream": "a",
    "generation": 3,
    "profile": "twin",
    "state": 2,
    "instance": None,
    "deadline_seconds": 0.1,
    "service_time_seconds": 0.02,
    "burstiness": 3.14,
    "service_cv2": 0.25,
    "peers": {},
    "trials": {
        "twin": {"stage": "promoted", "gain": 0.64, "error": 0.3, "switchbacks": 3},
        "fast": {"stage": "candidate", "gain": None, "error": None, "switchbacks": 0},
        "spread": {"stage": "on trial", "gain": 0.1, "error": None, "switchbacks": 1},
    },
}


def test_trials_are_told_with_their_gain() -> None:
    """Each profile's stage, and the gain with its interval as far as it is known."""
    text = render(TOLD)
    assert "twin: promoted, gain 0.64 ± 0.30 in 3 switchbacks" in text
    assert "spread: on trial, gain 0.10 ± ? in 1 switchbacks" in text
    assert text.endswith("spread: on trial, gain 0.10 ± ? in 1 switchbacks")
    assert "\n  fast: candidate\n" in text


def test_arrivals_and_service_are_told_once_known() -> None:
    """How uneven arrivals and service are; nothing while either is unknown."""
    line = "arrivals 3.1 times as uneven as Poisson's, service times cv² 0.25"
    assert line in render(TOLD)
    assert "uneven" not in render(TOLD | {"burstiness": None})
