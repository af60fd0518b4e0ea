"""The text form of a class."""

import pytest

from trimtab.errors import ConfigError
from trimtab.load.schedule import Bursts, ClassLoad, Step
from trimtab.load.spec import class_load, scaled
from trimtab.load.workloads import Request, Work, home


def test_every_key_is_understood() -> None:
    """Each key of the text reaches its field."""
    assert class_load(
        "name=x,rate=20,law=zipf,path=/p,method=post,body=a=b,deadline=0.1,"
        "work=lognormal:0.02:1.5,steps=10:5/20:0/30:7:norm,bursts=4:1:9:shared"
    ) == ClassLoad(
        name="x",
        rate_per_second=20,
        law="zipf",
        request=Request("/p", "POST", (), b"a=b"),
        deadline_seconds=0.1,
        work=Work("lognormal", 0.02, 1.5),
        steps=(Step(10, 5), Step(20, 0), Step(30, 7, "norm")),
        bursts=Bursts(4, 1, 9, True),
    )


def test_defaults_come_from_the_command() -> None:
    """Path and law, where the text lacks them, are those of the command; a workload has its own."""
    assert class_load("name=x,rate=1", path="/q", law="fixed") == ClassLoad(
        name="x", rate_per_second=1, law="fixed", request=Request("/q")
    )
    assert class_load("name=x,rate=1,workload=home").request is home


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rate=1", "lacks name="),
        ("name=x", "lacks rate="),
        ("name=x,rate=fast", "'fast' is not a number"),
        ("name=x,rate=1,rate=2", "rate is given twice"),
        ("name=x,rate=1,colour=red", "'colour=red' is not KEY=VALUE"),
        ("name=x,rate=1,workload=mail", "unknown workload 'mail'"),
        ("name=x,rate=1,workload=home,path=/", "its own path"),
        ("name=x,rate=1,work=exp", "work=LAW:MEAN"),
        ("name=x,rate=1,work=cubic:1", "unknown law of work"),
        ("name=x,rate=1,steps=5", "steps=AT:RATE"),
        ("name=x,rate=1,bursts=2:1", "bursts=FACTOR:BURST:CALM"),
        ("name=x,rate=1,path=p", "must begin with '/'"),
    ],
)
def test_a_broken_text_is_refused(text: str, message: str) -> None:
    """What is wrong is named in one sentence."""
    with pytest.raises(ConfigError, match=message):
        class_load(text)


def test_scaling_reaches_every_length_and_rate() -> None:
    """Steps and bursts shrink with time, rates with the other scale; the factor stays."""
    load = class_load("name=x,rate=20,steps=10:5/20:8,bursts=4:1:9")
    small = scaled(load, 0.1, 2)
    assert small.rate_per_second == 40
    assert small.steps == (Step(1, 10), Step(2, 16))
    assert small.bursts == Bursts(4, 0.1, pytest.approx(0.9))
