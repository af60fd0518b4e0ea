"""The Lua codec of the policy messages, in a real nginx, against Python's protobuf."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nginx.wire import golden
from nginx.wire.harness import LUA, post_json, serving
from trimtab.v1 import policy_pb2


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of an nginx that runs codec_checks.lua."""
    with serving(tmp_path_factory.mktemp("codec"), LUA / "serve_checks.lua") as port:
        yield port


def check(port: int, function: str, **request: Any) -> Any:
    """Run a function of codec_checks.lua."""
    return post_json(port, f"/codec/{function}", request)


def decode(port: int, message: str, data: bytes) -> Any:
    """What the Lua codec makes of `data`: a table, or the error as str."""
    answer = check(port, "decode", message=message, hex=data.hex())
    return answer.get("decoded", answer.get("err"))


def write(directory: Path, name: str, kind: str, value: dict[str, Any]) -> None:
    """Write a case as the golden files are."""
    data = golden.message_bytes(kind, value)
    shape = golden.table(golden.MESSAGES[kind].FromString(data))
    (directory / f"{name}.bin").write_bytes(data)
    (directory / f"{name}.json").write_text(json.dumps({"message": kind, "table": shape}))


def golden_names() -> list[str]:
    """The names of the golden files, without suffix."""
    return sorted(path.stem for path in golden.DIRECTORY.glob("policy_*.bin"))


def test_golden_bytes_are_what_python_writes() -> None:
    """The golden files in the tree are those that this protobuf library makes."""
    made = golden.files()
    kept = {path.name: path.read_bytes() for path in golden.DIRECTORY.glob("policy_*")}
    assert sorted(made) == sorted(kept)
    assert [name for name in made if made[name] != kept[name]] == []


def test_lua_reads_and_writes_the_golden_bytes(port: int) -> None:
    """Lua turns each golden message into its table and back, byte for byte."""
    answer = check(port, "golden", directory=f"{golden.DIRECTORY}/", names=golden_names())
    assert answer == {"checked": len(golden.cases()), "failures": {}}


def test_lua_agrees_with_python_on_random_messages(port: int, tmp_path: Path) -> None:
    """Over 400 random messages of every type both sides have the same bytes and the same table."""
    rng = random.Random(20)
    names = []
    for number in range(400):
        kind = rng.choice(list(golden.MESSAGES))
        value = golden.random_table(rng, golden.MESSAGES[kind].DESCRIPTOR, entries=6)
        names.append(f"case_{number}")
        write(tmp_path, names[-1], kind, value)
    answer = check(port, "golden", directory=f"{tmp_path}/", names=names)
    assert answer == {"checked": 400, "failures": {}}


def test_a_large_report_is_the_same_on_both_sides(port: int, tmp_path: Path) -> None:
    """A report of 3 upstreams with 1000 peers each, half a megabyte, comes out byte for byte."""
    write(tmp_path, "large", "report_stats_request", golden.report(3, 1000))
    assert (tmp_path / "large.bin").stat().st_size > 500_000
    answer = check(port, "golden", directory=f"{tmp_path}/", names=["large"])
    assert answer == {"checked": 1, "failures": {}}


def test_policy_lua_has_the_fields_of_the_proto(port: int) -> None:
    """Every field of every message of the proto is known to the Lua side.

    A message with one entry in every list and no default value comes back whole.
    """

    def whole(descriptor: Any) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for field in descriptor.fields:
            plain = {field.TYPE_STRING: "x", field.TYPE_BOOL: True, field.TYPE_DOUBLE: 1.5}
            if field.message_type is None:
                value = plain.get(field.type, field.number)
            elif field.message_type.full_name == "google.protobuf.Duration":
                value = 2.5
            else:
                value = whole(field.message_type)
            out[field.name] = [value] if field.is_repeated else value
        return out

    for kind, message in golden.MESSAGES.items():
        value = whole(message.DESCRIPTOR)
        assert decode(port, kind, golden.message_bytes(kind, value)) == value


def test_mutated_bytes_never_throw_or_hang(port: int, tmp_path: Path) -> None:
    """40 000 mutated messages are decoded or refused; what is decoded encodes to the same again."""
    rng = random.Random(5)
    names = []
    for number in range(60):
        kind = rng.choice(list(golden.MESSAGES))
        value = golden.random_table(rng, golden.MESSAGES[kind].DESCRIPTOR, entries=2)
        names.append(f"seed_{number}")
        write(tmp_path, names[-1], kind, value)
    answer = check(port, "fuzz", directory=f"{tmp_path}/", names=names, rounds=40_000, seed=7)
    assert answer["thrown"] == {}
    assert answer["unequal"] == {}
    assert answer["decoded"] + answer["refused"] == 40_000
    assert min(answer["decoded"], answer["refused"]) > 4_000
    print(f"\n40000 mutations: {answer['decoded']} decoded, {answer['refused']} refused")


def test_unknown_fields_of_every_wire_type_are_passed_over(port: int) -> None:
    """Fields that a newer proto may add, groups within groups too, change nothing."""
    known = policy_pb2.ReportStatsResponse(accepted=True).SerializeToString()
    unknown = {
        "varint": "f83f" + "ff" * 9 + "01",
        "fixed64": "f93f" + "00" * 8,
        "bytes": "fa3f03aabbcc",
        "empty bytes": "fa3f00",
        "group": "fb3f" + "0801" + "13" + "fd3f00000000" + "14" + "fc3f",
        "fixed32": "fd3f01020304",
        "known number, other wire type": "0d01020304",
    }
    for what, hexadecimal in unknown.items():
        extra = bytes.fromhex(hexadecimal)
        for data in (extra + known, known + extra):
            assert policy_pb2.ReportStatsResponse.FromString(data).accepted
            assert decode(port, "report_stats_response", data) == {
                "accepted": True,
                "unknown": {},
            }, what


def test_numbers_in_lists_are_read_packed_and_one_by_one(port: int) -> None:
    """A repeated number is read in either form, and in a mixture, as protobuf asks."""
    peer = "2001" + "2201" + "02" + "2003"  # 1; packed 2; 3
    upstream = "1a" + f"{len(peer) // 2:02x}" + peer
    data = bytes.fromhex("2a" + f"{len(upstream) // 2:02x}" + upstream)
    expected = policy_pb2.ReportStatsRequest.FromString(data)
    assert list(expected.upstreams[0].peers[0].responses) == [1, 2, 3]
    report = decode(port, "report_stats_request", data)
    assert report["upstreams"][0]["peers"][0]["responses"] == [1, 2, 3]


@pytest.mark.parametrize(
    ("message", "hexadecimal", "error"),
    [
        ("get_weights_response", "08", "truncated"),
        ("get_weights_response", "0880", "truncated"),
        ("get_weights_response", "0a05aa", "truncated"),
        ("get_weights_response", "0affffffff0f", "truncated"),
        ("get_weights_response", "08" + "80" * 10 + "00", "varint of more than 10 bytes"),
        ("get_weights_response", "f83f" + "80" * 10 + "00", "varint of more than 10 bytes"),
        ("get_weights_response", "0881808080808080" + "10", "beyond 2^53"),
        ("get_weights_response", "08" + "ff" * 9 + "01", "beyond 2^53"),
        ("get_weights_response", "00", "bad field number"),
        ("get_weights_response", "80808080" + "8001" + "00", "bad field number"),
        ("get_weights_response", "0f", "unknown wire type"),
        ("get_weights_response", "0c", "group closed that was not opened"),
        ("get_weights_response", "0b14", "group closed that was not opened"),
        ("get_weights_response", "0b", "truncated"),
        ("get_weights_response", "0b" * 200 + "0c" * 200, "nested too deeply"),
        ("get_weights_response", "39000000", "truncated"),
        ("get_weights_response", "1a021080", "time_to_live: truncated"),
        ("get_weights_response", "1a061080" + "94ebdc03", "nanos beyond a second"),
        ("get_weights_response", "1a0b08" + "ff" * 9 + "01", "beyond 2^53"),
        ("report_stats_request", "21000000000000f07f", "clock_seconds: number not finite"),
        ("report_stats_request", "21000000000000f0ff", "clock_seconds: number not finite"),
        ("report_stats_request", "21ffffffffffffffff", "clock_seconds: number not finite"),
        ("report_stats_request", "2a051a0322" + "0180", "upstreams: peers: responses: truncated"),
        ("report_stats_request", "2a081a062204" + "01010180", "responses: truncated"),
        ("report_stats_request", "2a0a1a0822060101010101" + "01", "responses: more than 5"),
        ("report_stats_response", "1200" * 17, "unknown: more than 16"),
    ],
)
def test_malformed_bytes_are_refused_with_the_reason(
    port: int, message: str, hexadecimal: str, error: str
) -> None:
    """What is truncated, overlong or out of bounds gives an error that says so."""
    answer = decode(port, message, bytes.fromhex(hexadecimal))
    assert isinstance(answer, str)
    assert answer.startswith("failed to decode ")
    assert error in answer


def test_whole_numbers_are_exact_up_to_two_to_the_53(port: int) -> None:
    """2^53 and its neighbour below are read exactly, 2^53 + 1 is refused rather than rounded."""
    for value in (2**53 - 1, 2**53, 2**49 - 1, 2**28, 2**28 - 1):
        data = policy_pb2.GetWeightsResponse(generation=value).SerializeToString()
        assert decode(port, "get_weights_response", data)["generation"] == pytest.approx(
            value, rel=1e-13
        )
    beyond = policy_pb2.GetWeightsResponse(generation=2**53 + 1).SerializeToString()
    assert "beyond 2^53" in decode(port, "get_weights_response", beyond)


def test_decoding_is_bounded(port: int) -> None:
    """257 upstreams, 4097 peers, 16385 pairs or more than 8 MiB are refused."""
    upstreams = policy_pb2.GetWeightsResponse()
    for _ in range(257):
        upstreams.upstreams.add()
    data = upstreams.SerializeToString()
    assert "upstreams: too many" in decode(port, "get_weights_response", data)

    def peers(*counts: int) -> Any:
        answer = policy_pb2.GetWeightsResponse()
        for count in counts:
            upstream = answer.upstreams.add()
            for _ in range(count):
                upstream.peers.add()
        return decode(port, "get_weights_response", answer.SerializeToString())

    assert "upstreams: peers: too many" in peers(4097)
    assert "upstreams: peers: too many" in peers(4096, 4096, 4096, 4096, 1)
    assert len(peers(4096, 4096, 4096, 4096)["upstreams"]) == 4

    limit = 8 * 1024 * 1024
    assert check(port, "large", size=limit) == {"size": limit, "has_decoded": True}
    answer = check(port, "large", size=limit + 1)
    assert f"{limit + 1} bytes, at most {limit}" in answer["err"]


@pytest.mark.parametrize(
    ("message", "request_", "error"),
    [
        ("get_weights_request", {"table": {"epoch": -1}}, "epoch: -1 is not a whole number"),
        ("get_weights_request", {"table": {"epoch": 1.5}}, "epoch: 1.5 is not a whole number"),
        ("get_weights_request", {"table": {"epoch": 2.0**54}}, "is not a whole number"),
        ("get_weights_request", {"table": {"epoch": "1"}}, "epoch: 1 is not a whole number"),
        ("get_weights_request", {"table": {"instance": 5}}, "instance: 5 is not a string"),
        ("get_weights_response", {"table": {"time_to_live": -1}}, "-1 is not a span"),
        ("report_stats_request", {"nan": True}, "clock_seconds: "),
        ("report_stats_request", {"infinite": True}, "clock_seconds: inf is not a finite"),
        (
            "report_stats_request",
            {"table": {"upstreams": [{"peers": [{"requests": 1}, {"requests": -2}]}]}},
            "upstreams: peers: requests: -2 is not",
        ),
        (
            "get_weights_request",
            {"table": {"instance": "x" * (8 * 1024 * 1024)}},
            "bytes, at most 8388608",
        ),
    ],
)
def test_what_cannot_be_written_is_an_error_with_its_field(
    port: int, message: str, request_: dict[str, Any], error: str
) -> None:
    """Encoding a value that the field cannot hold returns an error and no bytes."""
    answer = check(port, "encode", message=message, **request_)
    assert "size" not in answer
    assert answer["err"].startswith("failed to encode ")
    assert error in answer["err"]


def test_the_cost_of_a_thousand_peers(port: int, tmp_path: Path) -> None:
    """Encoding and decoding 1000 peers is measured (printed with `pytest -s`)."""
    write(tmp_path, "weights_1000", "get_weights_response", golden.weights(1, 1000))
    write(tmp_path, "report_1000", "report_stats_request", golden.report(1, 1000))
    names = ["weights_1000", "report_1000"]
    answer = check(port, "measure", directory=f"{tmp_path}/", names=names, rounds=100)
    for name in names:
        cost = answer[name]
        print(
            f"\n{name}: {cost['bytes']} bytes, decode {cost['decode_microseconds']:.0f} us, "
            f"encode {cost['encode_microseconds']:.0f} us"
        )
        assert cost["decode_microseconds"] > 0
