"""Result files: JSON without NaN, records without pickles, a log that HdrHistogram reads."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from trimtab.errors import ConfigError, TrimtabError
from trimtab.load.files import (
    check_writable,
    histogram,
    plain,
    write_hdr,
    write_json,
    write_npz,
)
from trimtab.load.records import Ending, Records
from trimtab.load.result import Result
from trimtab.load.schedule import ClassLoad, build


def run() -> Result:
    """Three seconds of two classes, one of them with a deadline, one request in ten reset."""
    schedule = build(
        [
            ClassLoad(name="a", rate_per_second=300, deadline_seconds=0.02),
            ClassLoad(name="b", rate_per_second=100),
        ],
        seconds=3,
        seed=1,
    )
    count = len(schedule)
    response = np.random.default_rng(1).lognormal(-4, 1, count)
    ending = np.where(np.arange(count) % 10 == 3, Ending.RESET, Ending.OK).astype(np.uint8)
    data = Records(
        classes=("a", "b"),
        peers=("p",),
        class_index=schedule.class_index,
        intended=schedule.times,
        work_seconds=schedule.work_seconds,
        send=schedule.times,
        first_byte=np.where(ending == Ending.OK, schedule.times + response / 2, np.nan),
        end=schedule.times + response,
        status=np.where(ending == Ending.OK, 200, 0).astype(np.uint16),
        ending=ending,
        peer=np.zeros(count, dtype=np.int16),
        reused=np.zeros(count, dtype=bool),
        received_bytes=np.full(count, 7, dtype=np.uint32),
    )
    return Result.of(
        schedule,
        data,
        url="http://x",
        started_at=1_700_000_000.25,
        processes=2,
        sent=np.ones(count, dtype=bool),
    )


def ranked(values: np.ndarray, share: float) -> float:
    """The value of the rank that HdrHistogram takes for a percentile: it rounds the rank."""
    return float(np.sort(values)[int(share * len(values) + 0.5) - 1])


def test_json_has_the_documented_keys(tmp_path: Path) -> None:
    """The JSON result is what docs/load.md lists, with null where there is no number."""
    found = run()
    write_json(found, tmp_path / "r.json")
    data = json.loads((tmp_path / "r.json").read_text(), parse_constant=pytest.fail)
    document = (Path(__file__).parents[3] / "docs" / "load.md").read_text()
    keys = {*data, *data["total"], *data["bounds"], *data["classes"]["a"]}
    keys |= set(data["total"]["response_seconds"])
    assert not [k for k in keys if f"`{k}`" not in document]
    assert data["seed"] == 1
    assert data["started_at"] == "2023-11-14T22:13:20.250000+00:00"
    assert data["classes"]["b"]["art"] is None
    assert data["classes"]["a"]["failures"] == {"reset": found.summary("a").failed}
    assert data["classes"]["a"]["response_seconds"]["p99"] == found.summary("a").response.p99


def test_json_of_an_empty_run_is_json() -> None:
    """NaN, which JSON lacks, becomes null."""
    schedule = build([ClassLoad(name=n, rate_per_second=0) for n in "ab"], seconds=1)
    source = run()
    empty = Result.of(
        schedule,
        source.records.where(np.zeros(len(source.records), dtype=bool)),
        url="http://x",
        started_at=0.0,
        processes=1,
        sent=np.zeros(0, dtype=bool),
    )
    assert json.loads(json.dumps(plain(empty), allow_nan=False))["total"]["requests"] == 0


def test_records_are_read_back_without_pickles(tmp_path: Path) -> None:
    """Every column of every request is in the npz, and the names of classes, peers, endings."""
    found = run()
    write_npz(found, tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz", allow_pickle=False) as data:
        assert data["classes"].tolist() == ["a", "b"]
        assert data["peers"].tolist() == ["p"]
        assert data["endings"][data["ending"][3]] == "reset"
        for name in ("class_index", "intended", "send", "first_byte", "end", "status", "peer"):
            assert np.array_equal(data[name], getattr(found.records, name), equal_nan=True)


def test_a_histogram_keeps_three_digits() -> None:
    """Percentiles of the histogram lie within 0.1% of the exact ones."""
    values = np.random.default_rng(2).lognormal(-4, 2, 50_000)
    values = values[values > 1e-4]  # below, the microsecond itself is coarser than that
    h = histogram(values)
    assert h.get_total_count() == len(values)
    for share in (0.5, 0.9, 0.99, 0.999):
        exact = ranked(values, share)
        assert h.get_value_at_percentile(100 * share) == pytest.approx(1e6 * exact, rel=0.0015)


def test_merged_histograms_are_the_histogram_of_all() -> None:
    """Adding the histograms of parts gives the histogram of the whole: nothing is averaged."""
    values = np.random.default_rng(3).lognormal(-4, 1, 9_000)
    whole, merged = histogram(values), histogram(values[:0])
    for part in np.array_split(values, 4):
        merged.add(histogram(part))
    for share in (50.0, 99.0, 99.9):
        assert merged.get_value_at_percentile(share) == whole.get_value_at_percentile(share)
    assert merged.get_total_count() == whole.get_total_count()


def test_the_log_is_read_by_hdrhistogram(tmp_path: Path) -> None:
    """HdrHistogram's own reader finds every request, by class and second."""
    found = run()
    write_hdr(found, tmp_path / "r.hlog")
    lines = (tmp_path / "r.hlog").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[3:5]] == ["Tag=a", "Tag=b"]
    assert len(lines) == 3 + 2 * 3
    reader = HistogramLogReader(str(tmp_path / "r.hlog"), HdrHistogram(1, 3_600_000_000, 3))
    total = HdrHistogram(1, 3_600_000_000, 3)
    by_tag = {"a": 0, "b": 0}
    while (h := reader.get_next_interval_histogram()) is not None:
        total.add(h)
        by_tag[h.get_tag()] += h.get_total_count()
    reader.input_file.close()
    assert by_tag == {n: found.summary(n).requests for n in "ab"}
    exact = ranked(found.records.response_seconds, 0.99)
    assert total.get_value_at_percentile(99) == pytest.approx(1e6 * exact, rel=0.0015)


def test_a_file_that_cannot_be_written_is_found_before(tmp_path: Path) -> None:
    """A missing directory, a directory, and a file below a file are refused; nothing is left."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "none" / "x", tmp_path, tmp_path / "file" / "x"):
        with pytest.raises(ConfigError, match="cannot write"):
            check_writable(path)
    check_writable(tmp_path / "fresh")
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    check_writable(Path("/dev/null"))


def test_a_full_disk_is_one_sentence() -> None:
    """No room for the result: an error that says so, on which file, and what is lost."""
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    with pytest.raises(TrimtabError, match="cannot write /dev/full: No space left on device"):
        write_json(run(), Path("/dev/full"))


def test_a_file_is_replaced_at_once(tmp_path: Path) -> None:
    """Writing again replaces the file and leaves no temporary one beside it."""
    path = tmp_path / "r.json"
    path.write_text("old")
    write_json(run(), path)
    assert json.loads(path.read_text())["format"] == 1
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o077 == 0o666 & ~_umask() & 0o077


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
