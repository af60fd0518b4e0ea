"""The store: what is saved comes back whole or not at all, and generations never go back."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from trimtab.errors import StateError
from trimtab.store import BLOCK, Store

STATE = {"numbers": [1, 2.5], "text": "ü", "nested": {"empty": {}}}


def reopened(directory: Path, wall: float = 2000.0) -> Store:
    """A store on a directory, its clock at a fixed time."""
    return Store(directory, lambda: wall)


def kept_aside(directory: Path) -> list[str]:
    """Names of the files that were kept aside."""
    return sorted(p.name for p in directory.iterdir() if ".corrupt-" in p.name)


def test_state_comes_back(tmp_path: Path) -> None:
    """What was saved last is what is loaded, by this store and by the next."""
    store = reopened(tmp_path / "new" / "state")
    assert store.load() is None
    store.save({"old": 1})
    store.save(STATE)
    assert store.load() == STATE
    store.close()
    assert reopened(tmp_path / "new" / "state").load() == STATE


def test_keys_that_are_no_strings_become_such(tmp_path: Path) -> None:
    """The checksum is over what is read again, whatever keys and tuples were given."""
    store = reopened(tmp_path)
    store.save({"by": {10: 1, 9: (2, 3)}})
    assert store.load() == {"by": {"10": 1, "9": [2, 3]}}


def test_files_are_private(tmp_path: Path) -> None:
    """Only the owner may read the state."""
    store = reopened(tmp_path / "d")
    store.save(STATE)
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    for file in (tmp_path / "d").iterdir():
        assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda _: b"",
        lambda raw: raw.replace(b"2.5", b"2.6"),
        lambda raw: raw.replace(b'"format": 1', b'"format": 2'),
        lambda _: b"[1]",
        lambda raw: b"\x80" + raw,
        lambda _: b"[" * 100_000,
    ],
)
def test_damaged_state_is_kept_aside(tmp_path: Path, damage) -> None:
    """A file that is cut, changed, or of another version counts as none and is kept, not lost."""
    store = reopened(tmp_path)
    store.save(STATE)
    path = tmp_path / "state.json"
    bad = damage(path.read_bytes())
    path.write_bytes(bad)
    assert store.load() is None
    assert kept_aside(tmp_path) == ["state.json.corrupt-2000000"]
    assert (tmp_path / "state.json.corrupt-2000000").read_bytes() == bad
    store.save(STATE)
    assert store.load() == STATE


def test_generations_rise_over_a_restart(tmp_path: Path) -> None:
    """The epoch stays, and no generation is given out twice, also without a close."""
    first = reopened(tmp_path, 1000.0)
    assert first.epoch == 1_000_000
    given = [first.next_generation() for _ in range(2 * BLOCK + 5)]
    assert given == list(range(1, 2 * BLOCK + 6))
    first.close()
    second = reopened(tmp_path, 5000.0)
    assert second.epoch == 1_000_000
    assert second.next_generation() > given[-1]


def test_lost_generations_begin_a_new_epoch(tmp_path: Path) -> None:
    """Without a valid file nobody knows what was given out: a later epoch says so."""
    store = reopened(tmp_path, 1000.0)
    store.save(STATE)
    store.close()
    path = tmp_path / "generations.json"
    for content in (b"{", None, _signed({"epoch": 1}), _signed({"epoch": -1, "reserved": 0})):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        again = reopened(tmp_path, 3000.0)
        assert again.epoch == 3_000_000
        assert again.next_generation() == 1
        assert again.load() == STATE
        again.close()


def _signed(body: dict) -> bytes:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps({"format": 1, "sha256": checksum, "body": body}).encode()


def test_one_server_a_directory(tmp_path: Path) -> None:
    """A second store on the directory is refused until the first lets go."""
    first = reopened(tmp_path)
    with pytest.raises(StateError, match="another trimtab policy server"):
        reopened(tmp_path)
    first.close()
    reopened(tmp_path).close()


def test_directory_that_cannot_be_made(tmp_path: Path) -> None:
    """A path below a file is refused with the key to change."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="state_directory"):
        reopened(tmp_path / "file" / "state")


def test_state_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    """A NaN is refused at the door, and the old state stays."""
    store = reopened(tmp_path)
    store.save(STATE)
    for bad in ({"x": float("nan")}, {"x": object()}):
        with pytest.raises(StateError, match="not written"):
            store.save(bad)
    assert store.load() == STATE


def test_full_disk_uses_up_the_reserve_and_then_fails(tmp_path: Path, monkeypatch) -> None:
    """While no block can be reserved, generations already on disk go on; after them none is given
    out; and all is well again when there is room."""
    store = reopened(tmp_path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        given = [store.next_generation() for _ in range(BLOCK)]
        assert given == list(range(1, BLOCK + 1))
        with pytest.raises(StateError, match="No space left"):
            store.next_generation()
        with pytest.raises(StateError, match="No space left"):
            store.save(STATE)
    assert store.next_generation() == BLOCK + 1


CHILD = """
import sys
from trimtab.store import Store
store = Store(sys.argv[1])
n = 0
while True:
    n += 1
    generation = store.next_generation()
    if n % 7 == 0:
        store.save({"generation": generation, "padding": ["x"] * 2000})
    sys.stdout.write(f"{store.epoch} {generation}\\n")
    sys.stdout.flush()
"""


def test_kill_9_at_any_time_loses_no_promise(tmp_path: Path) -> None:
    """Killed in the middle of giving out and saving, again and again: every generation is larger
    than all before in the same epoch, and the state is always whole."""
    last, epochs = 0, set()
    for round_ in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        try:
            assert child.stdout is not None
            seen = [child.stdout.readline() for _ in range(300 + 571 * round_)]
            child.send_signal(signal.SIGKILL)
            seen += child.stdout.readlines()
        finally:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()
            child.stdout.close()
        rows = [tuple(map(int, line.split())) for line in seen if line.endswith("\n")]
        epochs |= {epoch for epoch, _ in rows}
        generations = [generation for _, generation in rows]
        assert generations == sorted(set(generations))
        assert generations[0] > last
        last = generations[-1]
        store = Store(tmp_path)
        state = store.load()
        assert state is not None
        assert state["generation"] <= last + 1
        last = store.next_generation()
        store.close()
    assert len(epochs) == 1
    assert kept_aside(tmp_path) == []
