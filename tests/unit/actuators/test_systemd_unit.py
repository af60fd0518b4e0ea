"""The systemd unit: paths are quoted, and the sandbox fits the state directory."""

import configparser
from dataclasses import replace
from pathlib import Path

import pytest

from nginx_samples import CONFIG
from trimtab.actuators.systemd_unit import render_unit
from trimtab.config import Policy
from trimtab.errors import ConfigError


def service(
    state: str = "var/trimtab", executable: str = "/opt/t/bin/trimtab", file: str = "/etc/t.toml"
) -> dict[str, str]:
    """The [Service] section rendered for these paths."""
    config = replace(CONFIG, policy=Policy(state_directory=Path(state)))
    text = render_unit(config, executable=executable, config_path=Path(file))
    unit = configparser.RawConfigParser(comment_prefixes=("#",), delimiters=("=",))
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    assert unit.sections() == ["Unit", "Service", "Install"]
    return dict(unit["Service"])


def test_the_policy_server_is_started_and_kept_alive() -> None:
    """ExecStart is the real path with `serve --config`, and a crash is followed by a restart."""
    section = service()
    assert section["ExecStart"] == '"/opt/t/bin/trimtab" serve --config "/etc/t.toml"'
    assert section["Type"] == "notify"
    assert section["SuccessExitStatus"] == "130 143"
    assert section["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert int(section["WatchdogSec"]) > 0
    assert section["Restart"] == "on-failure"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DynamicUser", "yes"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("CapabilityBoundingSet", ""),
        ("SystemCallFilter", "@system-service"),
    ],
)
def test_the_service_is_confined(key: str, value: str) -> None:
    """It has no rights beyond its own state directory."""
    assert service()[key] == value


def test_systemd_s_own_characters_in_paths_are_escaped() -> None:
    """Blanks, quotes, percent and dollar signs in a path stay part of the path."""
    shown = service(file='/etc/a "b" %n $HOME\\t.toml')["ExecStart"]
    assert shown.endswith('serve --config "/etc/a \\"b\\" %%n $$HOME\\\\t.toml"')


def test_homes_stay_readable_when_trimtab_lives_there() -> None:
    """A checkout in a home directory can be run, and never written."""
    assert service()["ProtectHome"] == "yes"
    assert service(executable="/home/a/.venv/bin/trimtab")["ProtectHome"] == "read-only"


@pytest.mark.parametrize(
    ("state", "directory"),
    [("var/x", "trimtab"), ("/var/lib/lb", "lb"), ("/var/lib/lb/deep", "lb")],
)
def test_the_state_directory_is_systemd_s(state: str, directory: str) -> None:
    """A relative one lies in /var/lib/trimtab, an absolute one below /var/lib is made."""
    assert service(state)["StateDirectory"] == directory
    assert service(state)["WorkingDirectory"] == f"/var/lib/{directory}"


@pytest.mark.parametrize("state", ["/srv/state", "/var/lib", "/var/lib/../tmp/x", "/var/lib/a b"])
def test_a_state_directory_that_the_service_cannot_write_is_refused(state: str) -> None:
    """Its own user could not write there: the message gives a place where it can."""
    with pytest.raises(ConfigError, match=r"/var/lib|may have letters"):
        service(state)
