"""`trimtab demo`: what its options come to."""

import argparse
from pathlib import Path

import pytest

from trimtab.cli import demo, main
from trimtab.demo.social import NodeSettings


def settings(*options: str) -> list[NodeSettings]:
    """The nodes that these options ask for."""
    parser = argparse.ArgumentParser()
    demo.add_arguments(parser)
    return demo.settings(parser.parse_args(options))


def test_three_nodes_by_default() -> None:
    """Without options: three nodes of speeds 1 : 2 : 4 with two slots each, one store."""
    nodes = settings()

    assert [(n.address, n.slots, n.slowness) for n in nodes] == [
        ("127.0.0.1:19001", 2, 4.0),
        ("127.0.0.1:19002", 2, 2.0),
        ("127.0.0.1:19003", 2, 1.0),
    ]
    assert {n.database for n in nodes} == {Path("var/demo/social.db")}


def test_one_node() -> None:
    """One node takes its own address, slots, slowness and database."""
    (node,) = settings(
        *("--node", "127.0.0.1:19001", "--slots", "3", "--slowness", "4", "--database", "a/b.db")
    )

    assert (node.address, node.slots, node.slowness) == ("127.0.0.1:19001", 3, 4.0)
    assert node.database == Path("a/b.db")
    assert settings("--node", "[::1]:1")[0].slowness == 1.0


def test_values_for_all_or_each() -> None:
    """One value holds for all nodes, several are one each, and several factors count nodes."""
    nodes = settings("--nodes", "4", "--slots", "1,2,3,4", "--slowness", "2", "--port", "20000")

    assert [n.slots for n in nodes] == [1, 2, 3, 4]
    assert [n.slowness for n in nodes] == [2.0] * 4
    assert nodes[-1].address == "127.0.0.1:20003"
    assert len(settings("--slowness", "8,4,2,1,1")) == 5
    assert [n.slowness for n in settings("--nodes", "2")] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "3", "--slowness", "1,2"], "--slowness has 2 values"),
        (["--node", "127.0.0.1:1", "--slots", "1,2"], "--slots has 2 values"),
        (["--node", "127.0.0.1:1", "--port", "1"], "--port goes with --nodes"),
        (["--node", "0.0.0.0:19001"], "give a loopback address"),
        (["--port", "65534"], "go beyond port 65535"),
        (["--scenario", "/no/such/file.toml"], "/no/such/file.toml"),
    ],
)
def test_contradictions(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be is status 2 with one line, and nothing is started."""
    assert main(["demo", *options]) == 2

    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slowness", "0"], "'0' is not a number from 0.01 to 1000"),
        (["--slots", "0"], "'0' is not a whole number from 1 to 256"),
        (["--slots", "2,"], "'' is not a whole number"),
        (["--variation", "nan"], "'nan' is not a number from 0 to 10"),
        (["--nodes", "65"], "'65' is not a whole number from 1 to 64"),
        (["--nodes", "2", "--node", "127.0.0.1:1"], "not allowed with"),
    ],
)
def test_wrong_values(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong value is status 2 and named with what is allowed."""
    with pytest.raises(SystemExit) as end:
        main(["demo", *options])

    assert end.value.code == 2
    assert message in capsys.readouterr().err
