"""Snapshots of stock mode, over recorded answers of two versions of nginx-module-vts."""

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.config import parse
from trimtab.errors import ConfigError, SourceError
from trimtab.model import Snapshot, Window
from trimtab.responses import percentile_seconds, std_seconds
from trimtab.sources.names import Names
from trimtab.sources.stock import Vts, page_urls
from trimtab.sources.vts import parse as parse_status
from trimtab.window import Meter
from vts_replay import CAPTURES, GROUPS, Replay, configuration, replay

OLD, NEW = "v0.1.18", "v0.2.7-head"
FULL_OR_LACKING = {
    f"{OLD}.01-only-nogroups": "has no group 'compose_backend' \\(it has: ::nogroups\\)",
    f"{NEW}.01-only-nogroups": "has no group 'compose_backend' \\(it has: ::nogroups\\)",
    f"{NEW}.26-stats-by-upstream-off": "does not answer JSON",
    f"{OLD}.30-shm-full": "zone .* of 32768 bytes is full, and 5 servers have no counters",
    f"{NEW}.30-shm-full": "zone .* of 32768 bytes is full, and 4 servers have no counters",
}
LACKING = FULL_OR_LACKING.keys()


@pytest.fixture(scope="module")
def page() -> Iterator[Replay]:
    """A page to show captures on."""
    with replay() as shown:
        yield shown


class Reader:
    """A source and the meters of its instances, as the controller has them."""

    def __init__(self, page: Replay, **options: tuple[str, ...]) -> None:
        self.page = page
        self.now = 0.0
        self.source = Vts(configuration(page.url, **options), lambda: self.now)
        self.meter = Meter()

    def window(self, name: str) -> Window | None:
        """The window up to a capture; the first has none."""
        self.page.show(name)
        return self.take()

    def take(self) -> Window | None:
        """The window up to what the page shows."""
        self.now += 1.0
        snapshots = self.source.read()
        if not snapshots:
            self.meter = Meter()  # as the controller forgets an instance that is left out
            return None
        return self.meter.take(snapshots[0])


@pytest.mark.parametrize("name", sorted(p.stem for p in CAPTURES.glob("*.json")))
def test_every_capture_is_a_snapshot_or_a_clear_error(page: Replay, name: str) -> None:
    """Counters, times in seconds, buckets and gauges are those of the page; what cannot be right
    is one sentence with the remedy."""
    page.show(name)
    source = Vts(configuration(page.url))
    if name in FULL_OR_LACKING:
        with pytest.raises(SourceError, match=FULL_OR_LACKING[name]):
            source.read()
        return
    (snapshot,) = source.read()
    data = json.loads(page.body)
    assert snapshot.instance == "edge"
    assert snapshot.connections.active == data["connections"]["active"]
    assert snapshot.loaded_seconds == (data["nowMsec"] - data["loadMsec"]) / 1000
    assert snapshot.addresses == {}
    for group in GROUPS:
        rows = {row["server"]: row for row in data["upstreamZones"][group]}
        configured = {f"127.0.0.1:1981{n}" for n in (1, 2, 3)}
        assert snapshot.pairs[group].keys() == rows.keys() & configured
        for address, pair in snapshot.pairs[group].items():
            row = rows[address]
            assert pair.requests == row["requestCounter"]
            assert pair.responses == tuple(row["responses"].values())
            assert pair.failures == row["responses"]["5xx"]
            assert (pair.in_bytes, pair.out_bytes) == (row["inBytes"], row["outBytes"])
            assert pair.response_time_seconds == row["responseMsecCounter"] / 1000
            counted = row["responseBuckets"]["counters"]
            assert sum(pair.buckets) == max(counted[-1] if counted else 0, pair.requests)


@pytest.mark.parametrize("version", [OLD, NEW])
def test_windows_over_a_life_count_everything_once(page: Replay, version: str) -> None:
    """Over load, reload, new weights, a renamed and a returning server, a reset, a new zone and
    other buckets each request is counted once, and nothing is ever negative."""
    reader = Reader(page)
    steps = [
        ("03-loaded", None),
        ("03b-loaded-no-new-traffic", 0),
        ("05-after-reload-new-weights", 0),
        ("06-loaded-new-weights", 160),
        ("07-server-renamed", 0),
        # The renamed server was 127.0.0.1:19814: what it got is not of a configured peer.
        ("09-server-back", {OLD: 11, NEW: 12}[version]),
        ("10-after-control-reset", 0),
        ("12-after-reload-zone-size-changed", 0),
        ("13-after-reload-buckets-changed", 40),
        ("14-after-full-restart", 0),
    ]
    for step, requests in steps:
        window = reader.window(f"{version}.{step}")
        if requests is None:
            assert window is None
            continue
        assert window is not None, step
        assert window.requests == requests, step
        for peers in window.pairs.values():
            for pair in peers.values():
                assert sum(pair.buckets) == sum(pair.responses) == pair.requests
                assert 0 <= pair.response_time_seconds <= 0.2 * pair.requests


@pytest.mark.parametrize("version", [OLD, NEW])
def test_a_reset_of_requests_alone_counts_no_time_twice(page: Replay, version: str) -> None:
    """The control interface spares buckets, and in the old version times. Nothing that was there
    before is counted again; where times were zeroed and grew larger the old value is missing."""
    reader = Reader(page)
    reader.window(f"{version}.21-mixed-loaded")
    window = reader.window(f"{version}.24-read-timeout-504")
    assert window is not None
    total = window.pairs["compose_backend"].values()
    assert sum(p.requests for p in total) == {OLD: 3, NEW: 5}[version]
    low = {OLD: 6.0, NEW: 5.4}[version]
    assert low < sum(p.response_time_seconds for p in total) < 6.3
    assert window.pairs["home_read_backend"]["127.0.0.1:19811"].requests == 0
    assert window.pairs["home_read_backend"]["127.0.0.1:19811"].response_time_seconds == 0


@pytest.mark.parametrize("version", [OLD, NEW])
def test_windows_between_any_two_readings_are_sane(version: str) -> None:
    """Whatever a page showed before, also another nginx's life or an earlier one: nothing in the
    window is negative, and there is no more in it than the page has counted in all."""
    paths = [p for p in CAPTURES.glob(f"{version}.*.json") if p.stem not in LACKING]
    assert len(paths) > 10
    pages = {p.stem: (json.loads(p.read_bytes()), parse_status(p.read_bytes())) for p in paths}
    for first, (_, before) in pages.items():
        for second, (data, after) in pages.items():
            clock = [0.0]
            source = Vts(configuration("http://127.0.0.1:9/"), lambda clock=clock: clock[0])
            (nginx,) = source._nginxes
            meter = Meter()
            meter.take(source.snapshot(nginx, before))
            clock[0] = 1.0
            snapshot = source.snapshot(nginx, after)
            window = snapshot and meter.take(snapshot)
            if window is None:
                continue
            groups = data["upstreamZones"]
            for name, peers in window.pairs.items():
                shown = {row["server"]: row for row in groups[name]}
                for address, pair in peers.items():
                    row = shown[address]
                    told = (first, second, name, address)
                    assert 0 <= pair.requests <= row["requestCounter"], told
                    whole = (*pair.responses, *pair.buckets, pair.in_bytes, pair.out_bytes)
                    assert min(whole) >= 0, told
                    assert sum(pair.responses) <= sum(row["responses"].values()), told
                    assert pair.in_bytes <= row["inBytes"], told
                    assert pair.out_bytes <= row["outBytes"], told
                    assert 0 <= pair.response_time_seconds <= row["responseMsecCounter"] / 1000
                    # A reset by the control interface spares them: they may tell of more.
                    counted = row["responseBuckets"]["counters"]
                    most = max(row["requestCounter"], counted[-1] if counted else 0)
                    assert sum(pair.buckets) <= most, told


VALUES = [None, True, -1, 0, 0.5, 2**63, 1e308, 10**30, "x", "", [], {}, [1], {"a": 1}]


@pytest.mark.parametrize("seed", range(5))
def test_whatever_a_page_says_is_sane_or_refused(seed: int) -> None:
    """Captures with values replaced, left out or cut off anywhere: each reading is a snapshot or a
    SourceError, and a window has nothing negative and figures of buckets that are numbers."""
    chosen = random.Random(seed)
    bodies = [p.read_bytes() for p in sorted(CAPTURES.glob("*.json")) if p.stem not in LACKING]
    refused = taken = 0
    for _ in range(60):
        clock = [0.0]
        source = Vts(configuration("http://127.0.0.1:9/"), lambda clock=clock: clock[0])
        (nginx,) = source._nginxes
        meter = Meter()
        for _ in range(3):
            clock[0] += 1.0
            try:
                page = mutated(chosen.choice(bodies), chosen)
                snapshot = source.snapshot(nginx, parse_status(page))
            except SourceError:
                refused += 1
                continue
            window = meter.take(snapshot) if snapshot else None
            if window is None:
                continue
            taken += 1
            for peers in window.pairs.values():
                for pair in peers.values():
                    whole = (*pair.responses, *pair.buckets, pair.in_bytes, pair.out_bytes)
                    assert min(pair.requests, pair.response_time_seconds, *whole) >= 0
                    for figure in (std_seconds(pair), percentile_seconds(pair, 0.99)):
                        assert figure is None or 0 <= figure < math.inf
    assert refused > 10
    assert taken > 10


def mutated(body: bytes, chosen: random.Random) -> bytes:
    """A page with one or two values changed or left out, or cut off."""
    data = json.loads(body)
    for _ in range(chosen.randint(1, 2)):
        at: list[tuple[dict | list, str | int]] = []
        waiting = [data]
        while waiting:
            one = waiting.pop()
            keys = one.keys() if isinstance(one, dict) else range(len(one))
            at += [(one, key) for key in keys]
            waiting += [one[key] for key in keys if isinstance(one[key], dict | list)]
        where, key = chosen.choice(at)
        if chosen.random() < 0.8:
            where[key] = chosen.choice(VALUES)
        else:
            del where[key]
    text = json.dumps(data).encode()
    return text[: chosen.randrange(len(text))] if chosen.random() < 0.1 else text


def test_reloads_mark_their_window(page: Replay) -> None:
    """A window in which nginx took a configuration is told from others."""
    reader = Reader(page)
    reader.window(f"{NEW}.03-loaded")
    window = reader.window(f"{NEW}.05-after-reload-new-weights")
    assert window is not None
    assert window.disturbed


def changed(name: str, **changes: object) -> bytes:
    """A capture with other values at the top or in `connections`."""
    data = json.loads((CAPTURES / f"{name}.json").read_bytes())
    for key, value in changes.items():
        (data["connections"] if key in data["connections"] else data)[key] = value
    return json.dumps(data).encode()


def test_a_dump_that_is_restored_is_not_counted_again(page: Replay) -> None:
    """After a restart with vhost_traffic_status_dump the old counts are back: that reading is a
    baseline, and what follows counts."""
    reader = Reader(page)
    reader.window(f"{NEW}.06-loaded-new-weights")
    # Restored from a dump made before the last reading, so counters went back too.
    reader.page.body = changed(f"{NEW}.03-loaded", loadMsec=1795340020000, requests=2)
    assert reader.take() is None
    reader.page.body = changed(f"{NEW}.06-loaded-new-weights", loadMsec=1795340020000, requests=200)
    assert reader.take() is None  # the baseline
    assert reader.take() is None  # the same answer again: no time passed on nginx's clock
    reader.page.body = changed(
        f"{NEW}.06-loaded-new-weights", loadMsec=1795340020000, nowMsec=1795340005000, requests=201
    )
    window = reader.take()
    assert window is not None
    assert window.requests == 0


def test_another_nginx_behind_the_url_is_a_new_baseline(page: Replay) -> None:
    """What another host has counted in its life is not this window's."""
    reader = Reader(page)
    reader.window(f"{NEW}.03-loaded")
    reader.page.body = changed(f"{NEW}.06-loaded-new-weights", hostName="other")
    assert reader.take() is None


def test_a_clock_that_was_set_makes_no_negative_window(page: Replay) -> None:
    """When nginx's wall clock jumps, ours tells how much time has passed."""
    reader = Reader(page)
    reader.window(f"{NEW}.03-loaded")
    for now in (1795330000000, 1795330001000, 1795350000000):
        reader.page.body = changed(f"{NEW}.03-loaded", nowMsec=now)
        window = reader.take()
        assert window is not None
        assert window.seconds == pytest.approx(1.0)


def test_failures_without_a_live_server_are_kept(page: Replay) -> None:
    """The group's own name among its servers stands for requests that no server took."""
    page.show(f"{NEW}.21-mixed-loaded")
    (snapshot,) = Vts(configuration(page.url, groups=("retry500_backend",))).read()
    pairs = snapshot.pairs["retry500_backend"]
    assert set(pairs) == {"127.0.0.1:19811", "127.0.0.1:19812", "retry500_backend"}
    assert pairs["retry500_backend"].failures == 17


def test_unix_sockets_and_host_names_are_found(page: Replay) -> None:
    """A socket is known by its path, a host name by the address that it resolves to."""
    page.show(f"{NEW}.21-mixed-loaded")
    peers = ("unix:/run/backend/peer.sock", "localhost:19811", "nowhere.invalid:1")
    (snapshot,) = Vts(configuration(page.url, groups=("mixed_backend",), peers=peers)).read()
    pairs = snapshot.pairs["mixed_backend"]
    assert {a: p.requests for a, p in pairs.items()} == {
        "unix:/run/backend/peer.sock": 30,
        "localhost:19811": 30,
    }


def test_a_name_with_two_addresses_is_their_sum_until_they_change(page: Replay) -> None:
    """Two servers of one name count together; when it comes to mean others, one reading is a
    baseline."""
    page.show(f"{NEW}.03-loaded")
    config = configuration(page.url, groups=("compose_backend",), peers=("app:19811",))
    source = Vts(config)
    found = ["127.0.0.1:19811", "127.0.0.1:19812"]
    now = [0.0]
    source._names = Names(config, lambda: now[0], lambda _host, _port: tuple(found))
    (snapshot,) = source.read()
    assert snapshot.pairs["compose_backend"]["app:19811"].requests == 53
    found.append("127.0.0.1:19813")
    now[0] = 61.0
    assert source.read() == ()
    (snapshot,) = source.read()
    assert snapshot.pairs["compose_backend"]["app:19811"].requests == 120


def test_names_are_not_resolved_again_within_a_minute() -> None:
    """A server that nothing explains does not ask the resolver at each reading."""
    asked = []

    def resolve(host: str, port: int) -> tuple[str, ...]:
        asked.append((host, port))
        return ()

    names = Names(configuration("http://x/", peers=("app:1",)), lambda: 5.0, resolve)
    assert names.configured("compose_backend", "10.0.0.1:1") is None
    assert names.configured("compose_backend", "10.0.0.2:1") is None
    assert asked == [("app", 1)] * len(GROUPS)


@pytest.mark.parametrize("capture", [f"{OLD}.03-loaded", f"{NEW}.03-loaded"])
def test_percentiles_and_deviation_come_from_the_buckets(page: Replay, capture: str) -> None:
    """They lie within the coarse bucket that VTS has counted in."""
    reader = Reader(page)
    reader.window(capture.replace("03-loaded", "02-idle-groups"))
    window = reader.window(capture)
    assert window is not None
    slow = window.pairs["compose_backend"]["127.0.0.1:19813"]  # mean 97 ms, some above 100
    median = percentile_seconds(slow, 0.5)
    assert median is not None
    assert 0.045 < median < 0.13
    deviation = std_seconds(slow)
    assert deviation is not None
    assert deviation < 0.15


def test_servers_that_nginx_lacks_are_an_error_only_when_all_are(page: Replay) -> None:
    """A peer that is missing in nginx has no counters; a group of strangers is a mistake."""
    page.show(f"{OLD}.07-server-renamed")
    (snapshot,) = Vts(configuration(page.url)).read()
    assert "127.0.0.1:19813" not in snapshot.pairs["compose_backend"]
    source = Vts(configuration(page.url, peers=("10.9.9.9:1",)))
    with pytest.raises(SourceError, match="none of the servers configured for 'compose_backend'"):
        source.read()


def test_several_nginx_are_several_instances(page: Replay) -> None:
    """Each page is an instance; one that fails is left out, and all failing is an error."""
    with replay() as other:
        page.show(f"{NEW}.03-loaded")
        source = Vts(configuration(page.url, other.url))
        assert [s.instance for s in source.read()] == [page.url.split("/")[2]]
        other.show(f"{OLD}.03-loaded")
        names = {s.instance for s in source.read()}
        assert names == {page.url.split("/")[2], other.url.split("/")[2]}
        assert source.accepted == 3
        assert {i.name: i.sequence for i in source.instances()} == {
            page.url.split("/")[2]: 2,
            other.url.split("/")[2]: 1,
        }
        source.close()
    page.body = b""
    with pytest.raises(SourceError, match="503"):
        Vts(configuration(page.url)).read()


def test_a_zone_that_is_nearly_full_is_no_error_while_all_have_room(page: Replay) -> None:
    """With counters for every configured server a full zone harms nobody."""
    page.show(f"{NEW}.30-shm-full")
    peers = ("127.0.0.1:19811", "127.0.0.1:19812")
    (snapshot,) = Vts(configuration(page.url, groups=("home_read_backend",), peers=peers)).read()
    assert snapshot.pairs["home_read_backend"]["127.0.0.1:19811"].requests == 3


@pytest.mark.parametrize(
    ("buckets", "message"),
    [
        ({"msecs": [5, 5], "counters": [1, 1]}, "bounds that do not rise"),
        ({"msecs": [5, 10], "counters": [2, 1]}, "counts that fall"),
        ({"msecs": [5], "counters": [2, 3]}, "2 counters for 1 bounds"),
        ({"msecs": 5, "counters": []}, "no lists"),
        ({"msecs": ["x"], "counters": [1]}, "'x', not a number"),
    ],
)
def test_buckets_that_make_no_sense_are_refused(
    page: Replay, buckets: dict[str, object], message: str
) -> None:
    """A histogram is checked before it is believed."""
    data = json.loads((CAPTURES / f"{NEW}.03-loaded.json").read_bytes())
    data["upstreamZones"]["compose_backend"][0]["responseBuckets"] = buckets
    page.body = json.dumps(data).encode()
    with pytest.raises(SourceError, match=message):
        Vts(configuration(page.url)).read()


def test_the_page_is_by_default_that_of_the_internal_server(tmp_path: Path) -> None:
    """Without a URL the internal address is asked, on this machine, also a unix socket."""
    rest = '[[upstream]]\nname = "a"\nlocation = "/"\n[[upstream.peer]]\naddress = "10.0.0.1:80"\n'
    for listen, url in (
        ("127.0.0.1:81", "http://127.0.0.1:81/status/format/json"),
        ("0.0.0.0:81", "http://127.0.0.1:81/status/format/json"),
        ("unix:/run/n.sock", "http://unix:/run/n.sock:/status/format/json"),
    ):
        text = f'[nginx]\nmode = "stock"\ninternal_listen = "{listen}"\n{rest}'
        assert page_urls(parse(text)) == (url,)
    with pytest.raises(ConfigError, match="authorities"):
        Vts(parse(f'[stock]\nvts_ca_file = "{tmp_path}/none"\n{rest}'))


def test_snapshots_know_no_address_counters(page: Replay) -> None:
    """VTS cannot tell of slots: without address counters the estimator takes its other way."""
    page.show(f"{NEW}.16-first-server-down")
    (snapshot,) = Vts(configuration(page.url)).read()
    assert isinstance(snapshot, Snapshot)
    assert not snapshot.addresses
