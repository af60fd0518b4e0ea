"""Stock mode with the real nginx-module-vts, where TRIMTAB_VTS_MODULE names its .so file."""

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from nginxes import answering
from stocked import toml, weights_of
from trimtab import config
from trimtab.actuators import nginx_binary, nginx_conf
from trimtab.actuators.nginx_process import NginxProcess
from trimtab.actuators.stock import Stock
from trimtab.config import Config
from trimtab.responses import std_seconds
from trimtab.sources.stock import Vts
from trimtab.window import Meter

MODULE = os.environ.get("TRIMTAB_VTS_MODULE", "")

pytestmark = pytest.mark.skipif(
    not MODULE, reason="TRIMTAB_VTS_MODULE does not name a module; recorded answers are tested"
)


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Config, NginxProcess, list[str]]]:
    """The rendered configuration with the module, two servers behind it."""
    tmp_path.chmod(0o755)
    with answering() as one, answering() as other:
        text = toml(tmp_path, peers=[one, other], stock="reload_min_seconds = 0")
        lines = [s for s in text.splitlines() if not s.startswith("vts_url")]
        checked = config.parse("\n".join(lines))
        directory = tmp_path / "nginx"
        installation = nginx_binary.find(checked.nginx.binary)
        nginx_conf.write({}, directory)
        machine = nginx_binary.machine(
            installation, directory, "stock", vts_module=Path(MODULE).absolute()
        )
        with NginxProcess.rendered(directory, checked, machine=machine) as nginx:
            yield checked, nginx, [one, other]


def send(checked: Config, count: int) -> None:
    """So many requests, one after the other."""
    for _ in range(count):
        with urllib.request.urlopen(f"http://{checked.nginx.listen[0]}/read", timeout=5) as answer:
            answer.read()


def test_what_was_sent_is_what_is_read(
    running: tuple[Config, NginxProcess, list[str]],
) -> None:
    """Requests are counted once over load, a change of weights by reload, and a restart; buckets
    give a deviation."""
    checked, nginx, (one, other) = running
    source, meter, stock = Vts(checked), Meter(), Stock(checked)
    assert meter.take(source.read()[0]) is None
    send(checked, 40)
    window = meter.take(source.read()[0])
    assert window is not None
    assert window.requests == 40
    assert set(window.pairs["reads"]) == {one, other}
    assert all(std_seconds(pair) is not None for pair in window.pairs["reads"].values())
    stock.apply(weights_of({one: 3.0, other: 1.0}))
    send(checked, 40)
    window = meter.take(source.read()[0])
    assert window is not None
    assert window.requests == 40
    assert window.disturbed
    nginx.stop()
    nginx.start()
    send(checked, 10)
    window = meter.take(source.read()[0])
    assert window is not None
    assert window.requests == 10
