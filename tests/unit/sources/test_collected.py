"""Statistics files: what a line holds, and reading ours and the founding project's."""

import json
from pathlib import Path

import pytest

from trimtab.errors import SourceError
from trimtab.sources import vts
from trimtab.sources.collected import Reading, line, read_lines

DATA = Path(__file__).parents[2] / "data" / "vts"

# As the founding project's get_states.py wrote it (its example.json), addresses and all.
FOUNDING = (
    '{"compose_backend": {"<server1>:8080": {"requestCounter": 1018, "inBytes": 887090, '
    '"outBytes": 295089, "Non 2xx/3xx responses": 889, "requestMsecCounter": 2136856, '
    '"weight": 1, "maxFails": 1, "failTimeout": 10, "backup": 0, "down": 0}}}\n'
)


def status(name: str = "v0.2.7-head.21-mixed-loaded") -> vts.Status:
    """A real status."""
    return vts.parse((DATA / f"{name}.json").read_bytes())


def test_a_line_holds_what_the_founding_project_read() -> None:
    """Group, server and key are nested as its scripts index them, flags as 0 and 1."""
    data = json.loads(line(status("v0.1.18.16-first-server-down"), 12.3456))
    entry = data["compose_backend"]["127.0.0.1:19811"]
    assert list(entry) == [
        "requestCounter", "inBytes", "outBytes", "Non 2xx/3xx responses", "requestMsecCounter",
        "requestMsec", "responseMsecCounter", "weight", "maxFails", "failTimeout", "backup", "down",
    ]  # fmt: skip
    assert (entry["down"], entry["backup"]) == (1, 0)
    assert data["time"] == 12.346
    assert data["connections"]["active"] == 1


def test_other_answers_are_summed() -> None:
    """The key "Non 2xx/3xx responses" is 1xx, 4xx and 5xx together."""
    source = status()
    data = json.loads(line(source, 0))
    for group, servers in source.groups.items():
        for server in servers:
            expected = sum(server.responses[c] for c in ("1xx", "4xx", "5xx"))
            assert data[group][server.server]["Non 2xx/3xx responses"] == expected
    assert sum(s["Non 2xx/3xx responses"] for s in data["mixed_backend"].values()) > 0


def test_in_flight_is_there_when_given() -> None:
    """Requests in flight, which only Trimtab's hook knows, are in the line when it tells them."""
    source = vts.parse(
        b'{"connections": {}, "upstreamZones": {"g": [{"server": "s", "inFlight": 3}]}}'
    )
    assert json.loads(line(source, 0))["g"]["s"]["inFlight"] == 3
    assert "inFlight" not in json.loads(line(status(), 0))["compose_backend"]["127.0.0.1:19811"]


def test_a_server_listed_twice_is_one() -> None:
    """nginx counts two lines of one server together: its counters appear once, its weights add."""
    server = '{"server": "s", "requestCounter": 5, "weight": 2}'
    source = vts.parse(
        f'{{"connections": {{}}, "upstreamZones": {{"g": [{server}, {server}]}}}}'.encode()
    )
    entry = json.loads(line(source, 0))["g"]["s"]
    assert (entry["requestCounter"], entry["weight"]) == (5, 4)


def test_a_group_cannot_hide_the_time() -> None:
    """A group named like a key of the line is left out instead of replacing it."""
    source = vts.parse(b'{"connections": {"active": 1}, "upstreamZones": {"connections": []}}')
    assert json.loads(line(source, 3))["connections"] == {"active": 1}


def test_lines_are_read_back(tmp_path: Path) -> None:
    """What is written is read: time, connections, groups, values."""
    path = tmp_path / "s.json"
    path.write_bytes(line(status(), 1.5) + line(status(), 2.0))
    first, second = read_lines(path)
    assert (first.time_seconds, second.time_seconds) == (1.5, 2.0)
    assert first.groups == second.groups
    assert first.connections["active"] == 1
    assert first.load_msec == status().load_msec
    assert list(first.groups) == list(status().groups)


def test_the_founding_projects_files_are_read(tmp_path: Path) -> None:
    """Its lines lack the time, the connections and our newer keys, and are read all the same."""
    path = tmp_path / "example.json"
    with_connections = json.dumps({**json.loads(FOUNDING), "connections": {"active": 7}}) + "\n"
    path.write_text(FOUNDING + with_connections)
    first, second = read_lines(path)
    assert first.time_seconds is None
    assert first.connections == {}
    assert first.groups["compose_backend"]["<server1>:8080"]["requestMsecCounter"] == 2136856
    assert second.connections == {"active": 7}
    assert "connections" not in second.groups


def test_a_line_being_written_is_left_out(tmp_path: Path) -> None:
    """The last line without its end is not a reading yet; empty lines are nothing."""
    path = tmp_path / "s.json"
    path.write_text(FOUNDING + "\n" + FOUNDING[:50])
    assert len(list(read_lines(path))) == 1
    path.write_text("")
    assert list(read_lines(path)) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello\n", "line 2: not JSON"),
        ("[]\n", "line 2: not an object"),
        ('{"g": 5}\n', "line 2: group 'g' is not an object"),
        ('{"g": {"s": 5}}\n', "group 'g', server 's' is not an object"),
        ('{"g": {"s": {"weight": "x"}}}\n', "server 's': weight is 'x'"),
        ('{"g": {"s": {"weight": NaN}}}\n', "weight is nan"),
        ('{"time": "now"}\n', "time is 'now'"),
        ('{"connections": 3}\n', "connections is not an object"),
        ("[" * 100_000 + "\n", "not JSON"),
    ],
)
def test_what_is_no_reading_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """Anything else is an error with file and line; the lines before it were good."""
    path = tmp_path / "s.json"
    path.write_text(FOUNDING + text)
    lines = read_lines(path)
    assert isinstance(next(lines), Reading)
    with pytest.raises(SourceError, match=message):
        next(lines)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    """A file that is not there is a SourceError that names it."""
    with pytest.raises(SourceError, match=r"cannot read .*absent.json: No such file"):
        list(read_lines(tmp_path / "absent.json"))
