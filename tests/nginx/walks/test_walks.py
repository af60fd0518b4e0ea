"""The hook's machine code against the interpreter, over traffic that is drawn from seeds.

Minutes of it, as before a change of what is compiled becomes a release:
`TRIMTAB_WALK_SECONDS=600 python -m pytest -s tests/nginx/walks`.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

import luajit

TRAFFIC = Path(__file__).with_name("traffic.lua")
SECONDS = float(os.environ.get("TRIMTAB_WALK_SECONDS", "3"))
REQUESTS = 1500


@pytest.mark.timeout(SECONDS + 60)
def test_machine_code_does_what_the_interpreter_does() -> None:
    """Picks, binds, waits and pokes of whole runs, with retries, aborts, drains and up to four
    workers, are the same compiled as interpreted, and every count is zero at rest."""
    # The first seeds always, so that a short run repeats; a long one goes on with others.
    seeds = iter(range(1, 9))
    drawn = random.Random()
    totals: Counter[str] = Counter()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        seed = next(seeds, 0) or drawn.randrange(9, 2**31 - 1)
        compiled = luajit.run(TRAFFIC, [seed, REQUESTS, True])
        assert compiled == luajit.run(TRAFFIC, [seed, REQUESTS, False]), f"seed {seed}"
        walks, picks, waited = map(int, compiled[1:4])
        totals.update(seeds=1, walks=walks, picks=picks, waited=waited)
    print("compared:", dict(totals))
    assert totals["waited"] > 1000


def test_errors_of_lua_are_raised() -> None:
    """A traffic that fails is not one that agrees."""
    with pytest.raises(luajit.LuaError, match="attempt to"):
        luajit.run(TRAFFIC, [1, "nil"])
