"""The seeded social graph and the first posts, in the likeness of socfb-Reed98.

DeathStarBench fills its network from socfb-Reed98: 962 users, 18 812 friendships, each followed
both ways. Degrees there have mean 39, median near 31 and a largest one near 313. Here friendships
are drawn with probability proportional to the product of two users' weights (Chung and Lu), and
lognormal weights with sigma = 0.7 give a median of 31 = 39 · exp(-0.7²/2) and a tail that ends
near 300 among 962 users.
"""

import random
from collections.abc import Iterator
from itertools import accumulate
from typing import Final

from trimtab.demo.posts import Post

__all__ = ["USERS", "first_posts", "friendships", "username"]

USERS: Final = 962
MEAN_DEGREE: Final = 2 * 18812 / USERS
DEGREE_SIGMA: Final = 0.7

# As DeathStarBench's own script does with --compose: 0 to 20 posts a user.
MOST_FIRST_POSTS: Final = 20

_WORDS: Final = (
    "anchor bay beacon berth boom bow breeze buoy cabin chart cleat coast compass course crew "
    "current deck dinghy dock drift ebb fathom flag fog gale gull harbour helm hull island jib "
    "keel knot lantern lee lighthouse log mast moor oar pier pilot port quay reef rigging rudder "
    "sail shoal shore spar squall starboard stern storm tack tide tiller trim wake wave wharf wind"
)


def username(user_id: int) -> str:
    """The name that DeathStarBench's scripts give to a user."""
    return f"username_{user_id}"


def friendships(seed: int, users: int = USERS) -> list[tuple[int, int]]:
    """Pairs (a, b) with 1 ≤ a < b ≤ users, sorted, the same for the same arguments.

    Everybody has a friend, and the graph is connected.
    """
    if users < 2:
        return []
    draw = random.Random(f"trimtab demo graph {seed}")  # noqa: S311
    weights = [draw.lognormvariate(0.0, DEGREE_SIGMA) for _ in range(users)]
    cumulative = list(accumulate(weights))
    # A small graph (in tests) has fewer pairs than the degree law wants: take half of them.
    wanted = max(users - 1, min(round(users * MEAN_DEGREE / 2), users * (users - 1) // 4))
    everybody = range(1, users + 1)
    pairs: set[tuple[int, int]] = set()
    for user in range(2, users + 1):
        friend = draw.choices(everybody[: user - 1], cum_weights=cumulative[: user - 1])[0]
        pairs.add((friend, user))
    while len(pairs) < wanted:
        some = draw.choices(everybody, cum_weights=cumulative, k=2 * (wanted - len(pairs)))
        for a, b in zip(some[::2], some[1::2], strict=True):
            if a != b and len(pairs) < wanted:
                pairs.add((a, b) if a < b else (b, a))
    return sorted(pairs)


def first_posts(seed: int, users: int = USERS) -> Iterator[Post]:
    """The posts that the network starts with, oldest first, their authors in random order.

    0 to MOST_FIRST_POSTS a user and at least one in all; some mention users and hold a URL.
    """
    draw = random.Random(f"trimtab demo posts {seed}")  # noqa: S311
    authors = [u for u in range(1, users + 1) for _ in range(draw.randint(0, MOST_FIRST_POSTS))]
    draw.shuffle(authors)
    words = _WORDS.split()
    for author in authors or list(range(1, min(users, 1) + 1)):
        text = " ".join(draw.choices(words, k=draw.randint(8, 40)))
        for _ in range(draw.choice((0, 0, 1, 2))):
            text += f" @{username(draw.randint(1, users))}"
        if draw.random() < 0.25:
            text += f" http://{draw.choice(words)}.example.{draw.randint(1, 999)}"
        media = ((f"{draw.randrange(10**18):018d}", "png"),) if draw.random() < 0.25 else ()
        yield Post(
            user_id=author,
            username=username(author),
            req_id=draw.getrandbits(60),
            text=text,
            media=media,
        )
