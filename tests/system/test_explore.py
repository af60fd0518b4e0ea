"""`trimtab explore`: weights are walked and recorded, and come back at the end."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stocked import PEERS, Stocked, stocked, toml
from trimtab import config
from trimtab.cli import main
from trimtab.cli.explore import walk
from trimtab.sources.collected import read_lines
from vts_replay import Replay, configuration, replay

KEYS = "reload_min_seconds = 0\nverify_seconds = 5"


def file_for(one: Stocked, directory: Path, page: Replay) -> Path:
    """The TOML file of a running nginx."""
    text = toml(directory, peers=list(PEERS.values()), stock=KEYS, vts_url=page.url)
    (line,) = (s for s in text.splitlines() if s.startswith("internal_listen"))
    file = directory / "trimtab.toml"
    file.write_text(text.replace(line, f'internal_listen = "{one.config.nginx.internal_listen}"'))
    return file


def shown(one: Stocked) -> bytes:
    """A status page that shows the weights of the file, as VTS would."""
    rows = [
        {"server": s.split()[1], "weight": int(s.partition("weight=")[2].split()[0])}
        for s in one.text.splitlines()
        if "max_fails" in s
    ]
    return json.dumps({"connections": {}, "upstreamZones": {"reads": rows}}).encode()


def test_the_walk_ends_where_it_began(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights change every interval, readings are recorded, and at the end the file is, byte for
    byte, the one from before, and in force."""
    with replay() as page, stocked(tmp_path, stock=KEYS) as one:
        page.body = shown(one)
        before = one.text
        output = tmp_path / "explore.json"
        arguments = ["--config", str(file_for(one, tmp_path, page)), "--output", str(output)]
        more = ["--levels", "1,3,5", "--every", "0.3", "--read", "0.1", "--seconds", "2.5"]
        assert main(["explore", *arguments, *more]) == 0
        assert one.text == before
        assert one.beside == []
        assert one.reloads >= 3
    steps = [s for s in capsys.readouterr().out.splitlines() if " reads " in s]
    assert len(steps) >= 2
    assert len({s.split()[-1] for s in steps[:2]}) == 2
    assert len(list(read_lines(output))) >= 4


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_restores_too(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C in the middle leaves the weights from before."""
    with replay() as page, stocked(tmp_path, stock=KEYS) as one:
        page.body = shown(one)
        before = one.text
        arguments = ["--config", str(file_for(one, tmp_path, page)), "--every", "0.2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "trimtab", "explore", *arguments, "--read", "0.1"],
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        try:
            give_up = time.monotonic() + 20
            while one.text == before:
                assert time.monotonic() < give_up
                assert process.poll() is None
                time.sleep(0.02)
            process.send_signal(number)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 128 + number
        assert b"restoring" in said
        assert one.text == before


@pytest.mark.parametrize("kind", ["permuted", "random"])
def test_walks_are_seeded_and_never_stay(kind: str) -> None:
    """The same seed walks the same way; each step differs from the last; permuted ones use every
    level as often as the others."""
    checked = configuration("http://x/")
    levels = (1, 3, 5)
    one, other = (walk(checked, levels, kind, random.Random(7)) for _ in range(2))
    last = None
    for _ in range(50):
        weights = next(one)
        assert weights == next(other)
        now = [[p.rate for p in u.peers.values()] for u in weights.upstreams.values()]
        assert now != last
        assert all(rate in levels for row in now for rate in row)
        if kind == "permuted":
            assert all(sorted(row) == [1.0, 3.0, 5.0] for row in now)
        last = now


@pytest.mark.parametrize("levels", ["1", "1,1", "0,3", "1;3", "1,2000", ""])
def test_levels_that_make_no_walk_are_refused(
    levels: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Fewer than two weights, or ones that nginx would not take, are wrong arguments."""
    with pytest.raises(SystemExit) as ended:
        main(["explore", "--levels", levels])
    assert ended.value.code == 2
    assert "--levels" in capsys.readouterr().err


def test_explore_is_for_one_stock_nginx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Lua mode has no weights in a file, and two nginx are not walked at once."""
    text = toml(tmp_path, peers=list(PEERS.values()))
    file = tmp_path / "trimtab.toml"
    file.write_text(text.replace('mode = "stock"', 'mode = "lua"'))
    assert main(["explore", "--config", str(file)]) == 2
    assert "is for stock mode" in capsys.readouterr().err
    file.write_text(
        text.replace('vts_url = "', 'vts_url = ["http://other/", "').replace('status"', 'status"]')
    )
    assert len(config.load(file).stock.vts_url) == 2
    assert main(["explore", "--config", str(file)]) == 2
    assert "reads one nginx" in capsys.readouterr().err
