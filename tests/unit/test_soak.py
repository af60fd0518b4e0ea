"""The soak's judge: whom it blames for a lost request, and what it calls growth and going back."""

import socket
import threading

import numpy as np
import pytest

from ports import free_port
from soak.forwarder import Link, forwarding
from soak.judge import Disturbance, backward, growth_ratio, judge, lives
from trimtab.load.records import Ending, Records


def records(*rows: tuple[str, float, float, Ending, int]) -> Records:
    """Requests: class, sent at, ended at, ending and status."""
    classes = ("read", "post")
    count = len(rows)
    nothing = np.full(count, np.nan)
    return Records(
        classes=classes,
        peers=(),
        class_index=np.array([classes.index(r[0]) for r in rows], dtype=np.uint16),
        intended=np.array([r[1] for r in rows]),
        work_seconds=nothing,
        send=np.array([r[1] for r in rows]),
        first_byte=nothing,
        end=np.array([r[2] for r in rows]),
        status=np.array([r[4] for r in rows], dtype=np.uint16),
        ending=np.array([r[3] for r in rows], dtype=np.uint8),
        peer=np.full(count, -1, dtype=np.int16),
        reused=np.zeros(count, dtype=np.bool_),
        received_bytes=np.zeros(count, dtype=np.uint32),
    )


def test_a_killed_worker_answers_for_what_it_had() -> None:
    """Connections that broke at the kill are its loss; one that was opened after it is ours."""
    held = ("read", 4.9, 5.0, Ending.RESET, 0)
    later = ("read", 5.5, 5.6, Ending.RESET, 0)
    refused = ("read", 4.9, 5.0, Ending.STATUS, 502)

    losses = judge(records(held, later, refused), [Disturbance("worker killed", 5.0, 5.0)], "post")

    assert losses.by_killed_worker == 1
    assert losses.lost == 2
    assert "read sent at 5.50 s" in losses.unexplained[0]
    assert "status 502" in losses.unexplained[1]


def test_a_killed_server_answers_only_for_what_cannot_be_sent_twice() -> None:
    """A POST in flight at the kill is the server's loss; a GET, or a later POST, is ours."""
    rows = [
        ("post", 4.95, 5.0, Ending.STATUS, 502),
        ("read", 4.95, 5.0, Ending.STATUS, 502),
        ("post", 6.0, 6.1, Ending.STATUS, 502),
        ("post", 4.95, 5.0, Ending.STATUS, 503),
    ]

    losses = judge(records(*rows), [Disturbance("server killed", 5.0, 7.0)], "post")

    assert (losses.by_server, losses.lost) == (1, 3)


def test_a_hanging_server_answers_for_its_posts() -> None:
    """504 for a POST while it hung is the server's loss; without a fault nobody is excused."""
    rows = records(("post", 5.0, 8.0, Ending.STATUS, 504), ("read", 5.0, 5.1, Ending.OK, 200))

    assert judge(rows, [Disturbance("server stopped", 4.0, 8.0)], "post").by_server == 1
    assert judge(rows, [], "post").lost == 1


def test_a_reload_answers_for_kept_connections_that_it_closed() -> None:
    """Reset without a byte, on a kept connection, near it; nothing else."""
    rows = records(*[("read", at, at + 0.01, Ending.RESET, 0) for at in (5.0, 5.0, 9.0)],
                   ("read", 5.0, 5.01, Ending.STATUS, 502))  # fmt: skip
    rows.reused[:] = (True, False, True, True)

    losses = judge(rows, [Disturbance("reload", 4.8, 5.3)], "post")

    assert (losses.by_reload, losses.lost) == (1, 3)


def test_growth_is_of_the_last_third_over_the_first() -> None:
    """The warm-up is left out; what rises all the time is seen, one that rose and went is not."""
    flat = [(float(at), 50.0 if at > 5 else 200.0) for at in range(60)]
    rising = [(float(at), 50.0 + at) for at in range(60)]

    spike = [(at, 150.0 if 50 <= at < 55 else size) for at, size in flat]

    assert growth_ratio(flat, warm_up=10) == 1
    assert growth_ratio(spike, warm_up=10) == 1
    assert growth_ratio(rising, warm_up=10) > 1.3


def test_the_slope_is_of_each_process_by_itself() -> None:
    """A leak shows in each life, though a kill every half minute keeps the role's memory flat."""
    samples = [(float(at), at // 30, 50e6 + 1e6 * (at % 30)) for at in range(95)]

    found = lives(samples, warm_up=5)

    assert [life.pid for life in found] == [0, 1, 2]
    assert found[0].bytes_per_minute == pytest.approx(60e6)
    assert (found[0].begin, found[0].end, found[0].largest) == (5.0, 29.0, 79e6)


def test_a_generation_that_goes_back_is_seen() -> None:
    """Within an epoch; a new epoch begins anew."""
    assert backward([(1, 5), (1, 6), (2, 1), (2, 2)]) == []
    assert backward([(1, 5), (2, 1), (1, 4)]) == ["generation 4 after 5 in epoch 1"]


def test_the_forwarder_does_to_bytes_what_it_is_told() -> None:
    """Up: they come through; garbled: others do; refused: none."""
    target = socket.create_server(("127.0.0.1", 0))

    def echo() -> None:
        while True:
            try:
                connection, _ = target.accept()
            except OSError:
                return
            with connection:
                connection.sendall(connection.recv(1000))

    thread = threading.Thread(target=echo, daemon=True)
    thread.start()
    port = free_port()
    sent = bytes(range(200))

    def through() -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            connection.sendall(sent)
            received = b""
            try:
                while data := connection.recv(1000):
                    received += data
            except ConnectionError:
                pass
            return received

    with forwarding(port, target.getsockname()[1]) as forwarder:
        assert through() == sent
        forwarder.link = Link.GARBLED
        garbled = through()
        assert len(garbled) == len(sent)
        assert garbled != sent
        forwarder.link = Link.REFUSED
        assert through() == b""
    target.shutdown(socket.SHUT_RDWR)
    target.close()
    thread.join(10)
