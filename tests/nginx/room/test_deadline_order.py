"""Ten thousand requests of three classes in one waiting room: order, bound, and the room after."""

import asyncio
import resource
from pathlib import Path

import psutil

from hooked import hooked, until
from peers import Peer, peers
from waiting_room import HELD, Client, known, refused, waiting

# From the last configured to the first, so that the order of the configuration is the wrong one;
# so far that nobody is late when the queue has been served.
DEADLINES = {"far": 4000.0, "middle": 2000.0, "near": 1000.0}
SLOTS = 20


def test_ten_thousand_of_three_classes_are_served_in_deadline_order(tmp_path: Path) -> None:
    """Arriving in turn, or as many as may be open here: all of the nearest deadline are answered
    first, then the next, each class in the order of arrival but for the slots; one more than a
    class may have is refused; the room is empty after, and takes less than 20 kB each."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    each = min(3400, (hard - 1000) // 300 * 100)
    batch = 100
    names = list(DEADLINES)
    with (
        peers(Peer(slots=64)) as group,
        hooked(
            tmp_path,
            {name: known(group, SLOTS) for name in names},
            hold={**HELD, "max_waiting": each},
            deadline=DEADLINES,
        ) as nginx,
    ):
        assert nginx.get("/far", x_work="0.05")[0] == 200
        until(lambda: nginx.snapshot()["addresses"][0]["limit"] == SLOTS)
        worker = psutil.Process(nginx.workers()[0])

        async def all_of_them() -> list[tuple[str, int]]:
            order: list[tuple[str, int]] = []

            async def one(name: str, number: int) -> None:
                reader, writer = await asyncio.open_connection("127.0.0.1", nginx.port)
                writer.write(f"GET /{name} HTTP/1.1\r\nHost: x\r\nX-Work: 0.002\r\n\r\n".encode())
                answer = await reader.readuntil(b"\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 200")
                order.append((name, number))
                writer.close()

            async def until_waiting(least: int) -> None:
                while (await asyncio.to_thread(waiting, nginx)) < least:
                    await asyncio.sleep(0.01)

            blocking = [Client(nginx.port, "/far", 60) for _ in range(SLOTS)]
            while (await asyncio.to_thread(nginx.in_flight)) < SLOTS:
                await asyncio.sleep(0.01)
            before = worker.memory_info().rss
            tasks: list[asyncio.Task[None]] = []
            for first in range(0, each, batch):
                for name in names:
                    tasks += [
                        asyncio.create_task(one(name, n)) for n in range(first, first + batch)
                    ]
                    await until_waiting(len(tasks))
            assert (worker.memory_info().rss - before) / len(tasks) < 20_000
            for name in names:
                answer = await asyncio.to_thread(Client(nginx.port, f"/{name}").wait)
                assert answer.status == 503
                assert int(answer.getheader("Retry-After", "0")) >= 1
            assert await asyncio.to_thread(waiting, nginx) == 3 * each
            for client in blocking:
                client.leave()
            await asyncio.gather(*tasks)
            return order

        order = asyncio.run(all_of_them())
        until(nginx.is_at_rest)
        assert refused(nginx) == 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wanted = [name for name in reversed(names) for _ in range(each)]
    # Those that were in service when the last of a class was bound may be answered before it.
    strays = sum(got != want for (got, _), want in zip(order, wanted, strict=True))
    assert strays <= 2 * 2 * SLOTS
    for name in names:
        numbers = [n for got, n in order if got == name]
        # Batches came one after the other.
        assert max(abs(n // batch - i // batch) for i, n in enumerate(numbers)) <= 1
