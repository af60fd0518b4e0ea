"""A policy server for tests: real grpcio on the generated code, in a process of its own.

`python policy_server.py PORT` serves PolicyService on loopback. Each line on its standard input is
a JSON object that changes what it answers, each answered by one line of JSON: the requests that
came since the last one. `PolicyServer` does this for a test.

Keys: `weights` (a GetWeightsResponse in the codec's shape: tests/nginx/wire/golden.py), `always`
(true: the whole answer also to who has that generation), `code` and `message` (an error), `delay`
(seconds before the answer), `raw` (hexadecimal bytes in place of a message), `answers_reports`
(false: no weights in the answer to a report).
"""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc

TESTS = Path(__file__).parents[1]
SERVICE = "trimtab.v1.PolicyService"


class PolicyServer:
    """The test's end of a policy server process."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.process = subprocess.Popen(
            [sys.executable, __file__, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def set(self, **behaviour: Any) -> list[dict[str, Any]]:
        """Answer like this from now on; returns the requests since the last call.

        Each is {"method", "request" (in the codec's shape)}.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(behaviour) + "\n")
        self.process.stdin.flush()
        requests: list[dict[str, Any]] = json.loads(self.process.stdout.readline())
        return requests

    def kill(self) -> None:
        """End it at once, as kill -9 does."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                if stream:
                    stream.close()


@contextlib.contextmanager
def policy_server(port: int) -> Iterator[PolicyServer]:
    """Run a policy server; it is killed on the way out."""
    server = PolicyServer(port)
    try:
        yield server
    finally:
        server.kill()


async def _serve(port: int) -> None:
    sys.path.insert(0, str(TESTS))
    from nginx.wire import golden
    from trimtab.v1 import policy_pb2

    behaviour: dict[str, Any] = {}
    requests: list[dict[str, Any]] = []

    async def get_weights(request: Any, context: Any) -> Any:
        requests.append({"method": "GetWeights", "request": golden.table(request)})
        await asyncio.sleep(behaviour.get("delay", 0))
        if "code" in behaviour:
            code = grpc.StatusCode[behaviour["code"]]
            await context.abort(code, behaviour.get("message", ""))
        if "raw" in behaviour:
            return bytes.fromhex(behaviour["raw"])
        return answer_to(request).SerializeToString()

    def answer_to(request: Any) -> Any:
        answer: Any = golden.fill(policy_pb2.GetWeightsResponse(), behaviour.get("weights", {}))
        held = (request.epoch, request.generation)
        if held == (answer.epoch, answer.generation) and not behaviour.get("always"):
            answer.unchanged = True
            del answer.upstreams[:]
        return answer

    async def report_stats(request: Any, _context: Any) -> Any:
        requests.append({"method": "ReportStats", "request": golden.table(request)})
        answer = policy_pb2.ReportStatsResponse(accepted=True)
        if request.HasField("weights_wanted") and behaviour.get("answers_reports", True):
            answer.weights.CopyFrom(answer_to(request.weights_wanted))
        return answer.SerializeToString()

    # Not the generated registration: its serialisers could not send what is no message.
    handlers = {
        "GetWeights": grpc.unary_unary_rpc_method_handler(
            get_weights, policy_pb2.GetWeightsRequest.FromString
        ),
        "ReportStats": grpc.unary_unary_rpc_method_handler(
            report_stats, policy_pb2.ReportStatsRequest.FromString
        ),
    }
    limit = 16 * 1024 * 1024
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", limit),
            ("grpc.max_send_message_length", limit),
        ]
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        behaviour.clear()
        behaviour.update(json.loads(line))
        print(json.dumps(requests), flush=True)
        requests.clear()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
