"""The seeded graph and the first posts."""

import statistics
from collections import Counter

import pytest

from trimtab.demo.graph import MOST_FIRST_POSTS, USERS, first_posts, friendships


def test_same_seed_same_graph() -> None:
    """Graph and posts depend on the seed alone."""
    assert friendships(7, 100) == friendships(7, 100)
    assert friendships(7, 100) != friendships(8, 100)
    assert list(first_posts(7, 30)) == list(first_posts(7, 30))
    assert list(first_posts(7, 30)) != list(first_posts(8, 30))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_degrees_are_like_reed98(seed: int) -> None:
    """962 users, 18 812 friendships, degrees with median near 31 and a tail near 300."""
    pairs = friendships(seed)

    degrees = sorted(Counter(user for pair in pairs for user in pair).values())

    assert len(degrees) == USERS == 962
    assert len(set(pairs)) == len(pairs) == 18812
    assert all(1 <= a < b <= USERS for a, b in pairs)
    assert 26 <= statistics.median(degrees) <= 36
    assert 150 <= degrees[-1] <= 450
    assert degrees[0] >= 1


@pytest.mark.parametrize("users", [0, 1, 2, 3, 10, 50])
def test_small_graphs_are_connected(users: int) -> None:
    """However few users there are, everybody is reached over friendships."""
    pairs = friendships(1, users)

    reached, edge = {1}, True
    while edge:
        edge = False
        for a, b in pairs:
            if (a in reached) != (b in reached):
                reached |= {a, b}
                edge = True
    assert reached >= set(range(1, users + 1))


def test_first_posts() -> None:
    """At most twenty posts a user, of everybody's making, all by users that exist."""
    posts = Counter(post.user_id for post in first_posts(1))

    assert set(posts) <= set(range(1, USERS + 1))
    assert max(posts.values()) <= MOST_FIRST_POSTS
    assert 8 * USERS < posts.total() < 12 * USERS
    assert len(list(first_posts(1, 1))) >= 1
    assert list(first_posts(1, 0)) == []
