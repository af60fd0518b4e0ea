"""The configuration file: what is accepted, and what the refusals say."""

import subprocess
import sys
from pathlib import Path

import pytest

from trimtab import config
from trimtab.errors import ConfigError

MINIMAL = """
[[upstream]]
name = "api"
location = "/api/"
[[upstream.peer]]
address = "127.0.0.1:9001"
"""

FULL = """
[policy]
listen = "unix:/run/trimtab/policy.sock"
admin_listen = "127.0.0.1:18291"
interval_seconds = 0.5
time_to_live_seconds = 5
state_directory = "/var/lib/trimtab"
[nginx]
mode = "stock"
listen = ["127.0.0.1:18080", "[::1]:18080"]
internal_listen = "127.0.0.1:18081"
worker_processes = "auto"
binary = "/usr/sbin/nginx"
instance = "edge-1"
[stock]
vts_url = ["http://127.0.0.1:18081/status/format/json", "https://edge-2/status"]
vts_ca_file = "/etc/ssl/own.pem"
include_file = "/etc/nginx/trimtab/upstreams.conf"
main_file = "/etc/nginx/nginx.conf"
pid_file = "/run/nginx.pid"
method = "round_robin"
load_ratio = 0.8
reload = "command"
reload_command = ["sudo", "-n", "/usr/sbin/nginx", "-s", "reload"]
check_command = ["sudo", "-n", "/usr/sbin/nginx", "-t"]
reload_min_seconds = 10
reloads_per_hour = 12
material_ratio = 0.1
verify_seconds = 5
[learning]
enabled = false
observe_seconds = 10
decision_seconds = 5
clusters = "bic"
outlier_threshold = 5
exploration_ratio = 0.0
seed = 7
[[upstream]]
name = "compose_backend"
location = "/wrk2-api/post/compose"
priority = 3
deadline_seconds = 0.150
timeout_seconds = 5
retry_non_idempotent = true
[[upstream.peer]]
address = "127.0.0.1:9001"
slots = 2
weight = 3
[[upstream.peer]]
address = "unix:/run/app.sock"
"""


def test_minimal_file_takes_the_documented_defaults() -> None:
    """One upstream with one peer is a whole configuration."""
    got = config.parse(MINIMAL)
    assert got.policy.listen == "127.0.0.1:18290"
    assert got.nginx.mode == "lua"
    assert got.upstreams[0].priority == 1.0
    assert got.upstreams[0].deadline_seconds is None
    assert got.upstreams[0].peers == (config.Peer(address="127.0.0.1:9001"),)


def test_every_key_is_read() -> None:
    """Each documented key arrives in its field."""
    got = config.parse(FULL)
    assert got.policy.state_directory == Path("/var/lib/trimtab")
    assert got.policy.interval_seconds == 0.5
    assert got.nginx.listen == ("127.0.0.1:18080", "[::1]:18080")
    assert got.nginx.worker_processes == "auto"
    assert got.stock == config.Stock(
        vts_url=("http://127.0.0.1:18081/status/format/json", "https://edge-2/status"),
        vts_ca_file=Path("/etc/ssl/own.pem"),
        include_file=Path("/etc/nginx/trimtab/upstreams.conf"),
        main_file=Path("/etc/nginx/nginx.conf"),
        pid_file=Path("/run/nginx.pid"),
        method="round_robin",
        load_ratio=0.8,
        reload="command",
        reload_command=("sudo", "-n", "/usr/sbin/nginx", "-s", "reload"),
        check_command=("sudo", "-n", "/usr/sbin/nginx", "-t"),
        reload_min_seconds=10.0,
        reloads_per_hour=12,
        material_ratio=0.1,
        verify_seconds=5.0,
    )
    assert got.learning == config.Learning(
        enabled=False,
        observe_seconds=10.0,
        decision_seconds=5.0,
        clusters="bic",
        outlier_threshold=5,
        exploration_ratio=0.0,
        seed=7,
    )
    assert got.upstreams[0].retry_non_idempotent is True
    assert got.upstreams[0].peers[0].slots == 2
    assert got.upstreams[0].peers[1].address == "unix:/run/app.sock"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("[[upstream]]", "[policies]\n[[upstream]]"), "unknown section 'policies'"),
        (("name", "nmae"), "unknown key 'nmae' in [[upstream]] 1 (did you mean 'name'?); allowed:"),
        (('name = "api"\n', ""), "[[upstream]] 1 lacks the key 'name'"),
        (('"api"', '"a b"'), "name in [[upstream]] 'a b' is 'a b'; it must be letters"),
        (('"/api/"', '"/api/; return 200"'), "location in [[upstream]] 'api' is"),
        (('"/api/"', "3"), "it must be a URI prefix"),
        (('"127.0.0.1:9001"', '"127.0.0.1"'), '"HOST:PORT"'),
        (('"127.0.0.1:9001"', '"127.0.0.1:0"'), '"HOST:PORT"'),
        (('"127.0.0.1:9001"', '"127.0.0.1:9001 down"'), '"HOST:PORT"'),
        (('"127.0.0.1:9001"', '"unix:relative"'), '"unix:/absolute/path"'),
        (('"127.0.0.1:9001"', '"[::g]:80"'), '"[IPv6]:PORT"'),
        (('9001"', '9001"\nslots = 0'), "slots in [[upstream.peer]] 1 of [[upstream]] 'api' is 0"),
        (('9001"', '9001"\nslots = true'), "a whole number from 1"),
        (('9001"', '9001"\nweight = 1.5'), "a whole number from 1"),
        (('"/api/"', '"/api/"\npriority = 0.5'), "a number from 1 to 1000"),
        (('"/api/"', '"/api/"\npriority = nan'), "a number from 1 to 1000"),
        (('"/api/"', '"/api/"\ndeadline_seconds = "1"'), "a number from"),
        (('[[upstream]]\nname = "api"', '[upstream]\nname = "api"'), "double brackets"),
        (("= ", "== "), "not valid TOML"),
    ],
)
def test_a_refusal_names_file_key_and_what_is_allowed(
    change: tuple[str, str], message: str
) -> None:
    """Each mistake is refused with a sentence that lets its author mend it."""
    with pytest.raises(ConfigError) as caught:
        config.parse(MINIMAL.replace(change[0], change[1], 1), "my.toml")
    assert str(caught.value).startswith("my.toml: ")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no [[upstream]]"),
        ('[[upstream]]\nname = "a"\nlocation = "/"\n', "has no [[upstream.peer]]"),
        (MINIMAL + MINIMAL, "two [[upstream]] have the name 'api'"),
        (MINIMAL + MINIMAL.replace('"api"', '"b"'), "two [[upstream]] have the location '/api/'"),
        (
            MINIMAL + '[[upstream.peer]]\naddress = "127.0.0.1:9001"\n',
            "the peer '127.0.0.1:9001' twice",
        ),
        (
            MINIMAL + MINIMAL.replace("api", "b").replace('9001"', '9001"\nslots = 2'),
            "both are the server's, give the same everywhere",
        ),
        ("[policy]\ntime_to_live_seconds = 1\n" + MINIMAL, "at least twice interval_seconds"),
        ("policy = 3\n" + MINIMAL, "[policy] must be a table"),
        ('[stock]\nreload = "command"\n' + MINIMAL, "reload_command in [stock] go together"),
        ('[stock]\nreload_command = ["x"]\n' + MINIMAL, "reload_command in [stock] go together"),
        ('[stock]\nvts_url = "localhost/status"\n' + MINIMAL, "it must be a URL"),
        ('[stock]\nvts_url = ["http://a/", "http://a/"]\n' + MINIMAL, "different URLs"),
        ('[stock]\nreload_command = "nginx -s reload"\n' + MINIMAL, "a list of words"),
        ('[stock]\ninclude_file = "/etc/nginx/"\n' + MINIMAL, "it must be a file"),
        ('[policy]\ntls_key = "a"\n' + MINIMAL, "tls_certificate and tls_key in [policy] go"),
        ('[nginx]\npolicy_key = "a"\n' + MINIMAL, "policy_key in [nginx] go together"),
        ('[policy]\ntls_client_ca = "a"\n' + MINIMAL, "tls_client_ca in [policy] needs"),
        ('[policy]\nlisten = "0.0.0.0:1"\n' + MINIMAL, "beyond loopback and without TLS"),
        ('[policy]\nlisten = "policy.example:1"\n' + MINIMAL, "beyond loopback and without TLS"),
        ('[policy]\nadmin_listen = "[::]:1"\n' + MINIMAL, "'[::]:1', beyond loopback, and has no"),
        ('[policy]\ntraces_url = "collector:4318"\n' + MINIMAL, "it must be a URL"),
        ('[policy]\nlog_format = "xml"\n' + MINIMAL, '"text" or "json"'),
    ],
)
def test_what_must_hold_between_sections(text: str, message: str) -> None:
    """Contradictions between keys are refused too."""
    with pytest.raises(ConfigError) as caught:
        config.parse(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "keys",
    [
        'listen = "127.0.0.2:1"\nadmin_listen = "localhost:2"',
        'listen = "[::1]:1"\nadmin_listen = "unix:/run/admin"',
        'listen = "0.0.0.0:1"\ntls_certificate = "a.pem"\ntls_key = "a.key"',
        'listen = "10.0.0.1:1"\nadmin_listen = "10.0.0.1:2"\nplaintext_beyond_loopback = true',
    ],
)
def test_loopback_tls_or_a_word_of_the_operator_lets_it_listen(keys: str) -> None:
    """Plaintext stays on the machine unless plaintext_beyond_loopback says so."""
    assert config.parse(f"[policy]\n{keys}\n{MINIMAL}").policy.admin_listen


def test_a_missing_or_unreadable_file_is_a_config_error(tmp_path: Path) -> None:
    """No file, a directory and bytes that are no text each give one sentence."""
    with pytest.raises(ConfigError, match="no such file"):
        config.load(tmp_path / "absent.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "binary.toml")


def test_the_reference_is_generated() -> None:
    """docs/configuration.md is what scripts/config-doc writes, with a meaning for every key."""
    root = Path(__file__).parents[2]
    made = subprocess.run(
        [sys.executable, root / "scripts" / "config-doc"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    written = (root / "docs" / "configuration.md").read_text()
    assert written == made, "run scripts/config-doc --write"
