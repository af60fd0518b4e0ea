"""The collector's loop, its file, and when it ends."""

import contextlib
import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trimtab.errors import ConfigError, TrimtabError
from trimtab.sources.collected import read_lines
from trimtab.sources.collector import End, LineFile, collect

DATA = Path(__file__).parents[2] / "data" / "vts"
LOADED = (DATA / "v0.2.7-head.03-loaded.json").read_bytes()
RESTARTED = (DATA / "v0.2.7-head.14-after-full-restart.json").read_bytes()


class Page:
    """A status page whose answers a test sets; None is a 503."""

    def __init__(self) -> None:
        self.body: bytes | None = LOADED
        self.url = ""
        self.reads = 0
        self.on_read = lambda: None


@pytest.fixture
def page() -> Iterator[Page]:
    """A page on a free port."""
    state = Page()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.reads += 1
            state.on_read()
            self.send_response(200 if state.body else 503)
            self.end_headers()
            self.wfile.write(state.body or b"")

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        state.url = f"http://127.0.0.1:{server.server_address[1]}/"
        yield state
        server.shutdown()
        thread.join()


def ending_after(page: Page, end: End, script: dict[int, bytes | None], reads: int) -> None:
    """Let the page answer by the number of the read, and end the collector after `reads`."""

    def on_read() -> None:
        if page.reads in script:
            page.body = script[page.reads]
        if page.reads >= reads:
            end.end()

    page.on_read = on_read


def test_readings_become_lines(page: Page, tmp_path: Path) -> None:
    """Each reading is a line with its time, and one message says that it began."""
    said: list[str] = []
    with End() as end, contextlib.closing(LineFile(tmp_path / "s.json")) as file:
        ending_after(page, end, {}, reads=4)
        lines = collect(page.url, file, end, interval_seconds=0.02, notify=said.append)
    readings = list(read_lines(tmp_path / "s.json"))
    assert lines == len(readings) == 4
    times = [r.time_seconds or 0 for r in readings]
    assert times == sorted(times)
    assert abs(times[0] - time.time()) < 60
    assert len(said) == 1
    assert "every 0.02 s" in said[0]


def test_a_restart_is_survived_and_told_once(page: Page, tmp_path: Path) -> None:
    """Failures in between cost readings, not the file: one message each for gone, back, reset."""
    said: list[str] = []
    script = {3: None, 6: RESTARTED}
    with End() as end, contextlib.closing(LineFile(tmp_path / "s.json")) as file:
        ending_after(page, end, script, reads=8)
        lines = collect(page.url, file, end, interval_seconds=0.02, notify=said.append)
    assert lines == len(list(read_lines(tmp_path / "s.json"))) == 5
    assert [s.split(",")[0].split(":")[0].split(" after")[0] for s in said[1:]] == [
        "cannot read the statistics",
        "reading again",
        "the counters began again",
    ]
    assert "answers 503" in said[1]
    assert "3 readings are missing" in said[2]


def test_a_page_that_never_was_is_an_error(page: Page, tmp_path: Path) -> None:
    """Without a first reading there is one sentence, and no file is left."""
    page.body = None
    said: list[str] = []
    with (
        End() as end,
        contextlib.closing(LineFile(tmp_path / "s.json")) as file,
        pytest.raises(ConfigError, match=r"answers 503 .*; nothing was collected"),
    ):
        collect(page.url, file, end, interval_seconds=0.02, first_seconds=0.1, notify=said.append)
    assert page.reads > 2
    assert said == []
    assert list(tmp_path.iterdir()) == []


def test_an_end_before_the_first_reading_is_an_error_too(page: Page, tmp_path: Path) -> None:
    """A time that is over sooner than the page is given up must not look like success."""
    page.body = None
    with (
        End(seconds=0.05) as end,
        contextlib.closing(LineFile(tmp_path / "s.json")) as file,
        pytest.raises(ConfigError, match=r"answers 503 .*; nothing was collected"),
    ):
        collect(page.url, file, end, interval_seconds=0.02, notify=lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_page_may_come_late(page: Page, tmp_path: Path) -> None:
    """In the first seconds a page that does not answer yet is waited for."""
    page.body = None
    with End() as end, contextlib.closing(LineFile(tmp_path / "s.json")) as file:
        ending_after(page, end, {3: LOADED}, reads=5)
        assert collect(page.url, file, end, interval_seconds=0.02, notify=lambda _: None) == 3


def test_seconds_end_it_after_a_last_reading(page: Page, tmp_path: Path) -> None:
    """After its seconds it takes a last reading: the end of what was measured is in the file."""
    with End(seconds=0.1) as end, contextlib.closing(LineFile(tmp_path / "s.json")) as file:
        began = time.monotonic()
        lines = collect(page.url, file, end, interval_seconds=30, notify=lambda _: None)
        assert time.monotonic() - began < 20
    assert lines == 2


def test_a_process_ends_it(page: Page, tmp_path: Path) -> None:
    """When the watched process ends the collector does, at once, whatever the interval."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        with End(pid=process.pid) as end, contextlib.closing(LineFile(tmp_path / "s")) as file:
            page.on_read = lambda: process.stdin and process.stdin.close()
            lines = collect(page.url, file, end, interval_seconds=30, notify=lambda _: None)
        assert lines == 2
    finally:
        process.kill()
        process.wait()


def test_a_process_that_is_not_there_is_refused() -> None:
    """A process that has ended, or never was, is a ConfigError."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    with pytest.raises(ConfigError, match=f"no process {process.pid}"):
        End(pid=process.pid)


def test_lines_are_added_to_a_file(tmp_path: Path) -> None:
    """A file of whole lines grows; it is emptied first only when that is asked for."""
    path = tmp_path / "s.json"
    for text, overwrite in ((b"1\n", False), (b"2\n", False), (b"3\n", True)):
        with contextlib.closing(LineFile(path, overwrite=overwrite)) as file:
            file.write(text)
    assert path.read_bytes() == b"3\n"
    with contextlib.closing(LineFile(path)) as file:
        file.write(b"4\n")
    assert path.read_bytes() == b"3\n4\n"


def test_a_file_that_ends_inside_a_line_is_not_touched(tmp_path: Path) -> None:
    """What is not a file of whole lines is refused as it is: it may be somebody's."""
    path = tmp_path / "letter.txt"
    path.write_text("Dear reader")
    with pytest.raises(ConfigError, match="does not end with a whole line"):
        LineFile(path)
    assert path.read_text() == "Dear reader"


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """A missing directory, or a directory in the file's place, is a ConfigError."""
    for path in (tmp_path / "none" / "s.json", tmp_path):
        with pytest.raises(ConfigError, match="cannot write"):
            LineFile(path)


def test_no_room_leaves_whole_lines(tmp_path: Path) -> None:
    """A line that does not fit is taken back whole, and the message says how many are there."""
    path = tmp_path / "s.json"
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from trimtab.sources.collector import LineFile\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (250, 250))\n"
        "file = LineFile(Path(sys.argv[1]))\n"
        "while True:\n"
        "    file.write(b'x' * 99 + b'\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert "TrimtabError: cannot write" in done.stderr
    assert "2 whole lines were added" in done.stderr
    assert path.read_bytes() == (b"x" * 99 + b"\n") * 2


def test_a_full_device_is_told() -> None:
    """No space left is one sentence that names the file."""
    with (
        contextlib.closing(LineFile(Path("/dev/full"))) as file,
        pytest.raises(TrimtabError, match="cannot write /dev/full: No space left on device"),
    ):
        file.write(b"line\n")
