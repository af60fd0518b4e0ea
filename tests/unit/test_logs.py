"""The log: single lines for people, JSON objects for collectors."""

import json
import logging
from collections.abc import Iterator

import pytest

from trimtab import logs


@pytest.fixture(autouse=True)
def root_restored() -> Iterator[None]:
    """The root logger as it was."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def told(capsys: pytest.CaptureFixture[str], log_format: str) -> list[str]:
    """The lines that three records make, of which one is below the level."""
    logs.to_stderr("info", log_format)
    log = logging.getLogger("trimtab.loop")
    log.debug("not shown")
    log.info('a "quoted" word of %s', "Zoë")
    try:
        raise ValueError("two\nlines")
    except ValueError:
        log.exception("a step\nfailed")
    return capsys.readouterr().err.splitlines()


def test_text_is_one_line_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    """Time in UTC, level, module and message; a traceback stays in its line."""
    _, line = told(capsys, "text")
    when, level, where, rest = line.split(" ", 3)
    assert when[10] == "T"
    assert when.endswith("Z")
    assert (level, where) == ("error", "loop:")
    assert rest.startswith("a step | failed | Traceback")
    assert rest.endswith("ValueError: two | lines")


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Each record is a JSON object in one line; an exception has type and traceback."""
    first, second = (json.loads(line) for line in told(capsys, "json"))
    assert first.pop("time").endswith("Z")
    assert first == {"level": "info", "where": "loop", "message": 'a "quoted" word of Zoë'}
    assert (second["level"], second["message"]) == ("error", "a step\nfailed")
    assert second["error"] == "ValueError"
    assert second["traceback"].endswith("ValueError: two\nlines")
