"""What is sent: the social network's requests, plain ones, and the laws of work."""

import re

import numpy as np
import pytest

from trimtab.errors import ConfigError
from trimtab.load.laws import stream
from trimtab.load.workloads import (
    SOCIAL,
    SOCIAL_PATHS,
    SOCIAL_SHARES,
    WORK_LAWS,
    Request,
    Work,
    compose,
)

POST = re.compile(
    rb"username=username_(\d+)&user_id=(\d+)&text=([a-zA-Z0-9]{256})((?: @username_\d+){1,6})"
    rb"((?: http://[a-zA-Z0-9]{64}){1,6})"
    rb'&media_ids=\[((?:"\d{18}",?){1,5})\]&media_types=\[((?:"png",?){1,5})\]&post_type=0'
)


def test_posts_are_those_of_deathstarbench() -> None:
    """A post has 256 characters, 1 to 6 mentions and links, 1 to 5 media, as its wrk2 script."""
    requests = compose(stream(1, "x"), 500)
    mentions, links, media = set(), set(), set()
    for request in requests:
        found = POST.fullmatch(request.body)
        assert found, request.body
        own = found[1]
        assert found[2] == own
        assert 1 <= int(own) <= 962
        named = re.findall(rb"@username_(\d+)", found[4])
        assert own not in named
        assert all(1 <= int(n) <= 962 for n in named)
        assert found[6].count(b",") == found[7].count(b",")
        mentions.add(len(named))
        links.add(found[5].count(b"http"))
        media.add(found[6].count(b",") + 1)
        assert (request.method, request.path) == ("POST", SOCIAL_PATHS["compose"])
    assert mentions == links == set(range(1, 7))
    assert media == set(range(1, 6))


@pytest.mark.parametrize("name", ["home", "user"])
def test_reads_ask_for_ten_posts(name: str) -> None:
    """A read names a user from 1 to 962 and ten posts from 0 to 100 on."""
    starts = set()
    for request in SOCIAL[name](stream(1, "x"), 3000):
        found = re.fullmatch(
            SOCIAL_PATHS[name] + r"\?user_id=(\d+)&start=(\d+)&stop=(\d+)", request.path
        )
        assert found
        assert 1 <= int(found[1]) <= 962
        assert int(found[3]) == int(found[2]) + 10
        starts.add(int(found[2]))
    assert starts == set(range(101))


def test_the_mix_is_whole() -> None:
    """The shares of the three request types add up to one."""
    assert sum(SOCIAL_SHARES.values()) == pytest.approx(1)
    assert SOCIAL_SHARES.keys() == SOCIAL.keys()


def test_a_request_is_written_out() -> None:
    """Line, Host, own headers, length and body are in their order, with room for a header."""
    request = Request("/a?b=c", "POST", (("Accept", "x"),), b"body")
    assert request.parts("h:1") == (
        b"POST /a?b=c HTTP/1.1\r\nHost: h:1\r\nAccept: x\r\nContent-Length: 4\r\n",
        b"\r\nbody",
    )
    assert Request().parts("h") == (b"GET / HTTP/1.1\r\nHost: h\r\n", b"\r\n")


@pytest.mark.parametrize(
    "arguments",
    [
        {"path": "no-slash"},
        {"path": "/a b"},
        {"path": "/a\r\nX: y"},
        {"path": "/é"},
        {"method": "HEAD"},
        {"method": "get"},
        {"headers": (("A", "x\r\nB: y"),)},
        {"headers": (("A:", "x"),)},
        {"headers": (("Content-Length", "5"),)},
    ],
)
def test_what_cannot_be_sent_is_refused(arguments: dict[str, object]) -> None:
    """Nothing that would break the request's framing gets into one."""
    with pytest.raises(ConfigError):
        Request(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("law", WORK_LAWS)
def test_work_has_its_mean(law: str) -> None:
    """Each law of work has the mean that it is given."""
    drawn = Work(law, 0.02)(np.random.default_rng(1), 400_000)
    assert drawn.shape == (400_000,)
    assert drawn.min() > 0
    assert drawn.mean() == pytest.approx(0.02, rel=0.01)


def test_lognormal_work_has_its_variation() -> None:
    """The shape of lognormal work is its deviation over its mean."""
    drawn = Work("lognormal", 0.02, 0.5)(np.random.default_rng(1), 400_000)
    assert drawn.std() / drawn.mean() == pytest.approx(0.5, rel=0.02)


@pytest.mark.parametrize("alpha", [1.0, 1.5, 2.5])
def test_pareto_work_is_bounded(alpha: float) -> None:
    """Pareto work spans three decades at most, and its survival falls with the exponent."""
    drawn = Work("pareto", 1.0, alpha)(np.random.default_rng(1), 400_000)
    assert drawn.mean() == pytest.approx(1, rel=0.03)
    low = drawn.min()
    assert drawn.max() <= 1000.1 * low
    ratio = (drawn > 4 * low).mean() / (drawn > 2 * low).mean()
    assert ratio == pytest.approx(2**-alpha, rel=0.05)


@pytest.mark.parametrize("arguments", [("normal", 1.0), ("exp", 0.0), ("lognormal", 1.0, -1.0)])
def test_work_that_makes_no_sense_is_refused(arguments: tuple[str, float]) -> None:
    """An unknown law, a mean or a shape that is not above 0 is a ConfigError."""
    with pytest.raises(ConfigError):
        Work(*arguments)
