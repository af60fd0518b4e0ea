"""`trimtab up` with mutual TLS and a token between nginx and the policy server, all of it real."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from certificates import authority, signed
from nginxes import answering, toml
from trimtab import config
from trimtab.cli.status import fetch
from trimtab.errors import TrimtabError

PATIENCE_SECONDS = 30.0
TOKEN = 'with-"quotes"-and-\\-and-;-{}'


def wait_until(true: Callable[[], object], log: Path) -> None:
    """Wait; what the policy server logged is the message when it is in vain."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.05)


def secured(directory: Path, peer: str) -> str:
    """A configuration with everything that there is to secure."""
    root = authority(directory)
    server, nginx = (signed(root, directory, name) for name in ("server", "nginx"))
    (directory / "token").write_text(TOKEN)
    policy = (
        f'tls_certificate = "{server.certificate}"\ntls_key = "{server.key}"\n'
        f'tls_client_ca = "{root.certificate}"\nbalancer_token_file = "{directory / "token"}"\n'
        'log_format = "json"\n'
    )
    balancer = (
        f'policy_ca = "{root.certificate}"\npolicy_certificate = "{nginx.certificate}"\n'
        f'policy_key = "{nginx.key}"\n'
    )
    text = toml(directory, peers=[peer])
    return text.replace("[policy]\n", "[policy]\n" + policy).replace(
        "[nginx]\n", "[nginx]\n" + balancer
    )


@contextmanager
def running(directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`trimtab up` on the configuration in `directory`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "trimtab", "up", "--config", str(directory / "trimtab.toml")],
        stdout=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(PATIENCE_SECONDS)


def test_nginx_and_policy_server_talk_over_mutual_tls_with_a_token(tmp_path: Path) -> None:
    """Reports arrive and weights are in force over mutual TLS with a token, also after kill -9 of
    the policy server; a certificate that cannot work is refused on SIGHUP; the log is JSON."""
    with answering() as peer:
        text = secured(tmp_path, peer)
        (tmp_path / "trimtab.toml").write_text(text)
        checked = config.parse(text)
        log = tmp_path / "state" / "logs" / "policy.log"

        def status() -> dict[str, Any]:
            with suppress(TrimtabError):
                return fetch(checked.policy.admin_listen)
            return {"instances": [], "generation": 0, "server": {"pid": 0}}

        def followed() -> bool:
            """Whether the balancer reports, with the weights that it was told."""
            return any(i["generation"] > 0 for i in status()["instances"])

        with running(tmp_path):
            wait_until(followed, log)
            token = tmp_path / "state" / "nginx" / "policy_token.conf"
            assert stat.S_IMODE(token.stat().st_mode) == 0o600

            first = int(status()["server"]["pid"])
            os.kill(first, signal.SIGKILL)
            wait_until(lambda: status()["server"]["pid"] not in (0, first) and followed(), log)

            second = int(status()["server"]["pid"])
            checked.policy.tls_certificate.write_text("-----BEGIN rubbish\n")
            os.kill(second, signal.SIGHUP)
            wait_until(lambda: "keeping the configuration in use" in log.read_text(), log)
            assert followed()
        said = [json.loads(line) for line in log.read_text().splitlines()]
    assert any("(mutual TLS, token)" in line["message"] for line in said)
    assert TOKEN not in log.read_text()
