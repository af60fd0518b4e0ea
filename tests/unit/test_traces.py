"""Traces: spans of steps and calls where they are wanted, nothing where they are not."""

import subprocess
import sys

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import serving
from trimtab import traces
from trimtab.actuators.board import Board
from trimtab.config import Policy
from trimtab.loop import Loop
from trimtab.metrics import Metrics
from trimtab.sources.reported import Reported

URL = "http://127.0.0.1:4318/v1/traces"


class Controller:
    """A settable double: its step raises what it is given."""

    error: Exception | None = None

    def step(self) -> None:
        """Fail, perhaps."""
        if self.error:
            raise self.error

    def status(self) -> dict[str, object]:
        """Nothing to tell."""
        return {}

    def save(self) -> None:
        """Nothing to save."""


def test_a_step_is_a_span_and_a_failed_one_is_marked() -> None:
    """The loop's steps appear as spans; one that raised has the error's status and event."""
    exporter = InMemorySpanExporter()
    spans = traces.traces(Policy(traces_url=URL), exporter)
    config = serving.configuration()
    board, source = Board(), Reported(config)
    controller = Controller()
    loop = Loop(
        controller, board, Metrics(source, board), interval_seconds=1.0, stale_seconds=10.0,
        stamp=lambda: 0, traces=spans,
    )  # fmt: skip
    loop.step()
    controller.error = ValueError("no")
    loop.step()
    good, bad = exporter.get_finished_spans()
    assert (good.name, good.status.status_code) == ("step", StatusCode.UNSET)
    assert (bad.name, bad.status.status_code) == ("step", StatusCode.ERROR)
    assert bad.events[0].attributes["exception.message"] == "no"
    spans.close()


def test_a_call_is_a_span_of_its_length() -> None:
    """Method and status are attributes, the length is what was measured; INTERNAL is an error."""
    exporter = InMemorySpanExporter()
    spans = traces.traces(Policy(traces_url=URL, traces_ratio=1.0), exporter)
    spans.called("GetWeights", "OK", 0.25)
    spans.called("ReportStats", "INTERNAL", 0.0)
    good, bad = exporter.get_finished_spans()
    assert good.name == "trimtab.v1.PolicyService/GetWeights"
    assert good.attributes["rpc.grpc.status_code"] == "OK"
    assert good.end_time - good.start_time == 250_000_000
    assert good.status.status_code is StatusCode.UNSET
    assert bad.status.status_code is StatusCode.ERROR
    spans.close()


@pytest.mark.parametrize(
    ("ratio", "low", "high"), [(0.0, 0, 0), (0.5, 350, 650), (1.0, 1000, 1000)]
)
def test_calls_are_sampled(ratio: float, low: int, high: int) -> None:
    """About the share of calls that traces_ratio says becomes spans."""
    exporter = InMemorySpanExporter()
    spans = traces.traces(Policy(traces_url=URL, traces_ratio=ratio), exporter)
    for _ in range(1000):
        spans.called("GetWeights", "OK", 0.0)
    assert low <= len(exporter.get_finished_spans()) <= high
    spans.close()


def test_without_a_url_nothing_is_imported() -> None:
    """No traces_url: no OpenTelemetry in the process, and spans cost nothing."""
    code = (
        "import sys; from trimtab import daemon, traces; from trimtab.config import Policy; "
        "spans = traces.traces(Policy()); assert spans is traces.OFF; "
        "spans.step().__enter__(); spans.called('a', 'OK', 0.0); spans.close(); "
        "assert not any(m.startswith('opentelemetry') for m in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
