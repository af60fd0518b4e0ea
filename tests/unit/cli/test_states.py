"""`trimtab states`: from a statistics file to states that a person can read, and back."""

import json
import random
from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.cli.states import observations
from trimtab.sources.collected import read_lines

GROUPS = ("compose_backend", "home_read_backend")
SERVERS = ("10.0.0.1:80", "10.0.0.2:80")


def written(path: Path, lines: int = 480, founding: bool = False) -> Path:
    """A file of a load that triples every minute: 25 requests a reading of 5 ms, or 75 of 25 ms."""
    draw = random.Random(1)
    counted = {(g, s): [0, 0.0] for g in GROUPS for s in SERVERS}
    with path.open("w") as file:
        for n in range(lines):
            busy = n // 120 % 2
            line = {} if founding else {"time": 1.7e9 + n / 2, "connections": {"active": 5 + busy}}
            for (group, server), sums in counted.items():
                requests = draw.randint(22, 28) * (1 + 2 * busy)
                sums[0] += requests
                sums[1] += requests * (5 + 20 * busy) * draw.uniform(0.9, 1.1)
                line.setdefault(group, {})[server] = {
                    "requestCounter": sums[0],
                    "inBytes": sums[0] * 100,
                    "outBytes": sums[0] * 900,
                    "Non 2xx/3xx responses": 0,
                    "requestMsecCounter": round(sums[1]),
                    "requestMsec": 5,
                    "weight": 1,
                } | ({} if founding else {"responseMsecCounter": round(sums[1]), "inFlight": 1})
            file.write(json.dumps(line) + "\n")
    return path


@pytest.mark.parametrize("founding", [False, True])
def test_fit_finds_the_loads_and_show_shows_them(tmp_path: Path, capsys, founding: bool) -> None:
    """Two loads become two states with their rates and times, in our format and the founding
    project's, and `show` prints what `fit` printed."""
    file, model = written(tmp_path / "f.jsonl", founding=founding), tmp_path / "m.json"
    assert main(["states", "fit", str(file), "--out", str(model), "--clusters", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("2 states from 119 observations; ")
    row = next(r for r in printed.splitlines() if "response_time_seconds/compose" in r)
    assert sorted(float(x) for x in row.split()[1:]) == pytest.approx([0.005, 0.025], rel=0.1)
    assert main(["states", "show", str(model)]) == 0
    assert capsys.readouterr().out.strip() == printed.rpartition("written to")[0].strip()


def test_transitions_of_long_phases_mostly_stay(tmp_path: Path) -> None:
    """Phases of a minute in windows of two seconds: a state is followed by itself in nine of ten
    cases, and all observations but the last are counted."""
    file, model = written(tmp_path / "f.jsonl"), tmp_path / "m.json"
    main(["states", "fit", str(file), "--out", str(model), "--clusters", "2"])
    found = json.loads(model.read_text())
    stay = sum(n for a, b, n in found["transitions"] if a == b)
    total = sum(n for _, _, n in found["transitions"])
    assert total == found["observations"] - 1
    assert stay / total > 0.9


def test_in_flight_follows_from_response_times_where_it_is_not_told(tmp_path: Path) -> None:
    """The founding files have no requests in flight: 50 requests a second of 5 ms are 0.25."""
    seen = observations(read_lines(written(tmp_path / "f.jsonl", 40, founding=True)), 2.0)
    values = dict(zip(seen[3].names, seen[3].values, strict=True))
    assert values["in_flight/10.0.0.1:80"] == pytest.approx(2 * 0.25, rel=0.1)


def test_gap_and_restart_in_a_file_make_no_absurd_window(tmp_path: Path) -> None:
    """A balancer that was down for an hour and lost its counters leaves rates as they are."""
    lines = written(tmp_path / "f.jsonl", 80).read_text().splitlines()
    later = [json.loads(line) for line in lines]
    for line in later:
        line["time"] += 3600
    (tmp_path / "f.jsonl").write_text("\n".join([*lines, *map(json.dumps, later)]) + "\n")
    seen = observations(read_lines(tmp_path / "f.jsonl"), 2.0)
    at = seen[0].names.index("requests_per_second/compose_backend")
    assert all(80 < s.values[at] < 120 for s in seen)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["fit", "/nonexistent"], 1),
        (["fit", "FILE", "--clusters", "0"], 2),
        (["fit", "FILE", "--window", "-1"], 2),
        (["fit", "FILE", "--seed", "-1"], 2),
        (["fit", "FILE", "--out", "/nonexistent/m.json"], 2),
        (["fit", "EMPTY"], 1),
        (["show", "FILE"], 1),
        (["show", "/nonexistent"], 2),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path: Path, capsys, arguments: list[str], status: int):
    """Missing files, impossible numbers, empty files and files of another kind are told so."""
    written(tmp_path / "FILE", 60)
    (tmp_path / "EMPTY").write_text("")
    named = [str(tmp_path / a) if a in ("FILE", "EMPTY") else a for a in arguments]
    assert main(["states", *named]) == status
    told = capsys.readouterr().err
    assert told.startswith("trimtab: ")
    assert told.count("\n") == 1


def test_damaged_model_is_refused(tmp_path: Path, capsys) -> None:
    """A model that was changed by hand does not crash."""
    file, model = written(tmp_path / "f.jsonl", 60), tmp_path / "m.json"
    main(["states", "fit", str(file), "--out", str(model)])
    whole = json.loads(model.read_text())
    for key, value in {"format": 9, "clusters": {}, "occupancy": [[1]], "transitions": 3}.items():
        model.write_text(json.dumps(whole | {key: value}))
        assert main(["states", "show", str(model)]) == 1
    assert capsys.readouterr().err.count("trimtab: ") == 4


def test_a_picture_of_the_states_is_drawn(tmp_path: Path, capsys) -> None:
    """A PNG where it was asked for; an ending that is no picture's is one sentence."""
    pytest.importorskip("matplotlib")
    file = written(tmp_path / "stats.json", founding=True)
    picture = tmp_path / "states.png"
    assert main(["states", "fit", str(file), "--clusters", "3", "--picture", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    wrong = str(tmp_path / "states.nothing")
    assert main(["states", "fit", str(file), "--clusters", "3", "--picture", wrong]) == 2
    assert "--picture" in capsys.readouterr().err
