"""What people see of a run."""

import io

from load_results import mixed
from trimtab.load.client import Progress
from trimtab.load.report import show_progress, table
from trimtab.terminal import Progress as Bar


def test_progress_says_what_is_sent_and_left() -> None:
    """Without a terminal a line tells time left, requests sent, in flight and failed."""
    stream = io.StringIO()
    with Bar(10, stream=stream, clock=lambda: 0.0) as bar:
        show_progress(bar)(
            Progress(elapsed_seconds=4, seconds=10, total=1000, sent=400, done=390, failed=2)
        )
    assert "6 s left" in stream.getvalue()
    assert "400 of 1000 sent, 10 in flight, 2 failed" in stream.getvalue()


def test_the_table_fits_the_terminal() -> None:
    """80 columns hold the response times; what had no room is named, and there where there is."""
    narrow = table(mixed(), 80).splitlines()
    assert max(map(len, narrow[: narrow.index("")])) <= 80
    assert "p99.9 ms" in narrow[0]
    assert any("(no room for " in line and "service p50" in line for line in narrow)
    assert "no room" not in table(mixed(), 120)


def test_the_table_names_kinds_and_verdict() -> None:
    """The text has a row a class, the failures by kind, the peers' shares, and the verdict."""
    text = table(mixed())
    row = text.splitlines()[2].split()
    assert row[:2] == ["a", "4"]
    assert row[-1] == "2"
    assert "a failed: status 503 1, timeout 1" in text
    assert "answered by: p 75.0%, q 25.0%" in text
    assert text.splitlines()[-1].startswith("THE RUN IS NOT VALID: p99 of the send lag")
