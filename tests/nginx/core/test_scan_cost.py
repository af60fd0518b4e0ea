"""The command that says how long a scan of all peers takes."""

import scan_cost


def test_a_scan_of_many_peers_is_timed() -> None:
    """`python tests/scan_cost.py` has a figure for a group of 100 peers, larger than for 3."""
    assert 0 < scan_cost.microseconds(3, scans=100) < scan_cost.microseconds(100, scans=100)
