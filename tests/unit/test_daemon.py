"""The process: its parts start together, stop in order, and log in single lines."""

import asyncio
import socket
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import serving
from trimtab import daemon
from trimtab.actuators.board import Board
from trimtab.cli.status import fetch
from trimtab.config import Config
from trimtab.errors import TrimtabError
from trimtab.sources.reported import Reported
from trimtab.v1 import policy_pb2 as pb
from trimtab.v1 import policy_pb2_grpc


class Controller:
    """A settable double that puts up a new generation at each step."""

    def __init__(self, config: Config, source: Reported, board: Board) -> None:
        self.config, self.source, self.board = config, source, board
        self.generation = 0
        self.saved = 0
        self.step()

    def step(self) -> None:
        """One generation more."""
        self.generation += 1
        self.board.apply(serving.weights(self.config, generation=self.generation))

    def status(self) -> dict[str, Any]:
        """What `trimtab status` needs."""
        return {"generation": self.generation, "upstreams": {}}

    def save(self) -> None:
        """Count."""
        self.saved += 1

    def close(self) -> None:
        """Nothing is held."""


def on_sockets(directory: Path) -> Config:
    """A configuration that listens in a directory, with short intervals."""
    return serving.configuration(
        listen=f"unix:{directory / 'policy'}",
        admin_listen=f"unix:{directory / 'admin'}",
        policy="interval_seconds = 0.05",
    )


def test_all_parts_serve_and_stop_in_order(tmp_path: Path) -> None:
    """Weights, reports, health and status work at once; at the end sockets and state are right."""
    config = on_sockets(tmp_path)
    built: list[Controller] = []

    def build(*arguments: Any) -> Controller:
        built.append(Controller(*arguments))
        return built[0]

    def talk() -> dict[str, Any]:
        with grpc.insecure_channel(config.policy.listen) as channel:
            stub = policy_pb2_grpc.PolicyServiceStub(channel)
            ready = {"wait_for_ready": True, "timeout": serving.TIMEOUT}
            answer = stub.GetWeights(pb.GetWeightsRequest(instance="a"), **ready)
            assert answer.generation >= 1
            report = pb.ReportStatsRequest(instance="a", start=1, sequence=1)
            assert stub.ReportStats(report, **ready).accepted
            health = health_pb2_grpc.HealthStub(channel)
            status = health.Check(health_pb2.HealthCheckRequest(), **ready).status
            assert status == health_pb2.HealthCheckResponse.SERVING
        return fetch(config.policy.admin_listen)

    async def run() -> dict[str, Any]:
        stopping = asyncio.Event()
        serve = asyncio.ensure_future(daemon.serve(config, stopping, build))
        while not (tmp_path / "admin").exists():
            await asyncio.sleep(0)
            if serve.done():
                await serve
        try:
            return await asyncio.to_thread(talk)
        finally:
            stopping.set()
            await serve

    status = asyncio.run(run())
    assert status["server"]["trouble"] is None
    assert [i["name"] for i in status["instances"]] == ["a"]
    assert built[0].saved >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["listen", "admin_listen"])
def test_taken_address_ends_the_start(tmp_path: Path, key: str) -> None:
    """When one address is taken nothing stays behind, and the message names the key."""
    config = on_sockets(tmp_path)
    taken = getattr(config.policy, key).removeprefix("unix:")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(taken)
        other.listen()
        with pytest.raises(TrimtabError, match=f"cannot listen on {key} = "):
            asyncio.run(daemon.serve(config, asyncio.Event(), Controller))
    assert [str(path) for path in tmp_path.iterdir()] == [taken]


def test_controller_that_cannot_start_is_told() -> None:
    """What the controller says of its state or configuration reaches the user as it is."""

    def build(*_: Any) -> Controller:
        raise TrimtabError("the state is of a later version")

    with pytest.raises(TrimtabError, match="the state is of a later version"):
        asyncio.run(daemon.serve(serving.configuration(), asyncio.Event(), build))
