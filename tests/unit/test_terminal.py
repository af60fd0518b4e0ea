"""Progress and tables as people see them."""

from io import StringIO

import pytest

from trimtab.terminal import Progress


@pytest.mark.parametrize(
    ("left", "text"),
    [
        (6.0, "   6 s left"),
        (599.0, " 599 s left"),
        (720.0, "  12 min left"),
        (18060.0, "5 h 01 min"),
    ],
)
def test_long_waits_are_told_in_minutes(left: float, text: str) -> None:
    """Nobody plans an afternoon in seconds."""
    stream = StringIO()
    with Progress(20000.0, stream=stream) as bar:
        bar.update(20000.0 - left, "bench")
    assert text in stream.getvalue()


def test_other_units_stay_what_they_are() -> None:
    """A thousand evaluations are not sixteen minutes."""
    stream = StringIO()
    with Progress(1000.0, unit="evaluations", stream=stream) as bar:
        bar.update(0.0, "search")
    assert "1000 evaluations left" in stream.getvalue()
