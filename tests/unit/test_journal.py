"""The journal: bounded, oldest first, runs of changes as one entry."""

from trimtab.journal import MOST_ENTRIES, Entry, Journal


def entry(reason: str, changes: int = 0, generation: int = 1) -> Entry:
    """An entry in no state."""
    return Entry(
        time=float(generation),
        generation=generation,
        state=None,
        action="neutral",
        reason=reason,
        changes=changes,
    )


def test_run_of_changes_is_one_entry() -> None:
    """Changes for the same reason in a row become the newest, with their number."""
    journal = Journal()
    for generation in (1, 2, 3):
        journal.add(entry("estimates", 1, generation))
    (only,) = journal.entries()
    assert (only.generation, only.changes) == (3, 3)


def test_events_and_other_reasons_stay_apart() -> None:
    """Only changes are put together, and only next to each other."""
    journal = Journal()
    for one in (
        entry("estimates", 1),
        entry("told"),
        entry("told"),
        entry("estimates", 1),
        entry("other", 1),
    ):
        journal.add(one)
    assert [e.reason for e in journal.entries()] == [
        "estimates",
        "told",
        "told",
        "estimates",
        "other",
    ]


def test_oldest_entries_go() -> None:
    """It never grows beyond its bound."""
    journal = Journal()
    for n in range(MOST_ENTRIES + 10):
        journal.add(entry(str(n)))
    reasons = [e.reason for e in journal.entries()]
    assert (reasons[0], reasons[-1], len(reasons)) == ("10", str(MOST_ENTRIES + 9), MOST_ENTRIES)
