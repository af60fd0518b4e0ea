"""Spans of control-loop steps and gRPC calls, by OpenTelemetry; or nothing at all.

Without `traces_url` in [policy] nothing is imported and `OFF` does nothing. With it spans go by
OTLP over HTTP to a collector, from a thread of OpenTelemetry's; one that is away costs neither a
step nor a call.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final, Protocol

from trimtab.config import Policy
from trimtab.errors import DependencyError

__all__ = ["OFF", "Traces", "traces"]


class Traces(Protocol):
    """What is told of spans."""

    def step(self) -> AbstractContextManager[Any]:
        """Around a step of the control loop; an exception that passes marks it."""
        ...

    def called(self, method: str, code: str, seconds: float) -> None:
        """A gRPC call has just ended with a status after so many seconds."""
        ...

    def close(self) -> None:
        """Send what is left."""
        ...


class _Off:
    """No traces."""

    def step(self) -> AbstractContextManager[Any]:
        """Nothing."""
        return nullcontext()

    def called(self, method: str, code: str, seconds: float) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


OFF: Final[Traces] = _Off()


class _On:
    """Spans of one provider. Steps are always traced, of calls the share `ratio`."""

    def __init__(self, provider: Any, ratio: float) -> None:
        from opentelemetry.sdk.trace.sampling import TraceIdRatioBased
        from opentelemetry.trace import SpanKind, StatusCode

        self._provider = provider
        self._tracer = provider.get_tracer("trimtab")
        self._sampler = TraceIdRatioBased(ratio)
        self._ids = provider.id_generator
        self._kind = SpanKind.SERVER
        self._error = StatusCode.ERROR

    @contextmanager
    def step(self) -> Iterator[None]:
        """A span "step"."""
        with self._tracer.start_as_current_span("step"):
            yield

    def called(self, method: str, code: str, seconds: float) -> None:
        """A span that began `seconds` ago, with the names of OpenTelemetry's conventions."""
        if self._ids.generate_trace_id() & (2**64 - 1) >= self._sampler.bound:
            return
        ended = time.time_ns()
        span = self._tracer.start_span(
            f"trimtab.v1.PolicyService/{method}",
            kind=self._kind,
            start_time=ended - int(seconds * 1e9),
            attributes={
                "rpc.system": "grpc",
                "rpc.service": "trimtab.v1.PolicyService",
                "rpc.method": method,
                "rpc.grpc.status_code": code,
            },
        )
        if code == "INTERNAL":
            span.set_status(self._error)
        span.end(ended)

    def close(self) -> None:
        """Send what is left; a collector that is away is given up after its time limit."""
        self._provider.shutdown()


def traces(policy: Policy, exporter: Any = None) -> Traces:
    """What [policy] wants. `exporter` instead of OTLP, for tests. Raises DependencyError."""
    if policy.traces_url is None:
        return OFF
    try:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
    except ImportError:
        raise _missing() from None
    # One of our own, not the process's: a reload makes another.
    provider = TracerProvider(
        resource=Resource.create({"service.name": "trimtab"}), shutdown_on_exit=False
    )
    if exporter is not None:
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    else:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        except ImportError:
            raise _missing() from None
        # Two seconds: what the end of the process waits for a collector that is away.
        sender = OTLPSpanExporter(endpoint=policy.traces_url, timeout=2)
        provider.add_span_processor(BatchSpanProcessor(sender))
    return _On(provider, policy.traces_ratio)


def _missing() -> DependencyError:
    return DependencyError(
        "traces_url in [policy] needs packages that are not installed: pip install 'trimtab[otel]'"
    )
