"""Prints how long a scan of a group's peers takes: `python tests/scan_cost.py`.

One scan is what each pick does: the counts of four workers summed for every peer, and all scores.
It runs in nginx's own LuaJIT, outside of nginx.
"""

import sys
from pathlib import Path

import luajit

FILE = Path(__file__).parent / "nginx" / "core" / "scan_cost.lua"
SCANS = 400


def microseconds(peers: int, scans: int = SCANS) -> float:
    """Of one scan of so many peers: the least of some rounds."""
    (text,) = luajit.run(FILE, [peers, scans])
    return float(text)


if __name__ == "__main__":
    for count in map(int, sys.argv[1:] or (3, 12, 100, 1000)):
        print(f"{count} peers: {microseconds(count):.2f} µs")
