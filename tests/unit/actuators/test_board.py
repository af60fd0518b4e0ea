"""The board holds one set of weights, and its generation never goes back."""

import threading

import pytest

from trimtab.actuators.board import Board
from trimtab.errors import StateError
from trimtab.model import Weights


def some(epoch: int, generation: int) -> Weights:
    """Weights without peers."""
    return Weights(upstreams={}, epoch=epoch, generation=generation)


def test_new_board_holds_nothing() -> None:
    """Before the first weights the board says so."""
    assert Board().current() is None


@pytest.mark.parametrize(("epoch", "generation"), [(1, 3), (2, 1), (7, 2)])
def test_later_weights_replace_earlier_ones(epoch: int, generation: int) -> None:
    """A larger generation, or any generation of a larger epoch, is put in force."""
    board = Board()
    board.apply(some(1, 2))
    later = some(epoch, generation)
    board.apply(later)
    assert board.current() is later


@pytest.mark.parametrize(("epoch", "generation"), [(5, 4), (5, 3), (4, 9)])
def test_generation_never_goes_back(epoch: int, generation: int) -> None:
    """The same or an earlier generation is refused, and what is in force stays."""
    board = Board()
    first = some(5, 4)
    board.apply(first)
    with pytest.raises(StateError, match="generation 4 of epoch 5, which stays in force"):
        board.apply(some(epoch, generation))
    assert board.current() is first


def test_proposals_are_refused() -> None:
    """Weights that no guard has numbered are not put in force."""
    board = Board()
    with pytest.raises(StateError, match="proposal"):
        board.apply(some(5, 0))
    assert board.current() is None


def test_of_many_threads_the_latest_generation_wins() -> None:
    """Whatever the order in which threads apply, the largest generation ends in force."""
    board = Board()
    gate = threading.Barrier(8)

    def apply(first: int) -> None:
        gate.wait()
        for generation in range(first, 801, 8):
            try:
                board.apply(some(1, generation))
            except StateError:
                continue

    threads = [threading.Thread(target=apply, args=(n + 1,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    current = board.current()
    assert current is not None
    assert current.generation == 800
