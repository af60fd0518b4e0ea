"""`trimtab init`: a start for newcomers, and an existing nginx adopted without being touched."""

import re
import subprocess
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from ports import free_ports
from trimtab import config
from trimtab.actuators import nginx_binary
from trimtab.cli import main
from trimtab.cli.init import starter
from trimtab.config import Config, Peer, Upstream

NGINX_CONF = """\
pid {directory}/nginx.pid;
error_log {directory}/error.log;
events {{}}
http {{
    access_log off;
    {temp}
    include conf.d/*.conf;
    include missing.d/*.conf;
    map $uri $picked {{
        default reads;
        ~^/w writes;
    }}
    server {{
        listen 127.0.0.1:{port};
        server_name a.example;
        location /read/ {{
            proxy_pass http://reads/;
            proxy_read_timeout 1m30s;
        }}
        location = /old {{
            set $where $picked;
            proxy_pass http://$where;
        }}
        location ~ \\.php$ {{
            fastcgi_pass php;
        }}
        location /direct {{
            proxy_pass http://127.0.0.1:9;
        }}
        location /anything {{
            proxy_pass http://$arg_to;
        }}
        location /session {{
            proxy_pass http://sticky;
        }}
    }}
    server {{
        listen 127.0.0.1:{port};
        server_name b.example;
        proxy_next_upstream error timeout non_idempotent;
        location / {{
            if ($request_method = POST) {{
                proxy_pass http://writes;
            }}
        }}
    }}
}}
"""

UPSTREAMS = """
upstream reads {
    least_conn;
    zone reads 64k;
    server 127.0.0.1:9001 weight=3 max_fails=2;
    server 127.0.0.1 max_conns=10;
    server 127.0.0.1:9003 backup;
    keepalive 16;
}
upstream writes {
    random two;
    server unix:/run/w.sock;
    server [::1]:9002;
    queue_of_somebody 5;
}
upstream php { server 127.0.0.1:9009; }
upstream sticky { ip_hash; server 127.0.0.1:9010; }
upstream unused { server 127.0.0.1:9011; }
"""


@pytest.fixture
def existing(tmp_path: Path) -> Path:
    """An nginx.conf with includes, variables and two servers."""
    directory = tmp_path / "etc"
    (directory / "conf.d").mkdir(parents=True)
    (port,) = free_ports(1)
    kinds = nginx_binary.temp_paths(nginx_binary.find("nginx"))
    temp = "".join(f"{kind}_temp_path {directory}/{kind};\n" for kind in kinds)
    text = NGINX_CONF.format(directory=directory, port=port, temp=temp)
    (directory / "nginx.conf").write_text(text)
    (directory / "conf.d" / "upstreams.conf").write_text(UPSTREAMS)
    return directory / "nginx.conf"


def test_a_configuration_is_adopted(
    existing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Upstreams with their servers, weights, locations and times arrive in the TOML file; what was
    not understood is told; the files that were read are unchanged."""
    files = [existing, existing.parent / "conf.d" / "upstreams.conf"]
    before = [(f.read_bytes(), f.stat().st_mtime_ns) for f in files]
    output = tmp_path / "out" / "trimtab.toml"
    assert main(["init", "--from", str(existing), "--output", str(output)]) == 0
    assert [(f.read_bytes(), f.stat().st_mtime_ns) for f in files] == before
    found = config.load(output)
    assert found.nginx.mode == "stock"
    assert found.stock.main_file == existing
    assert found.stock.pid_file == existing.parent / "nginx.pid"
    assert found.stock.include_file == output.with_name("upstreams.conf")
    reads, writes = found.upstreams
    assert (reads.name, reads.location, reads.timeout_seconds) == ("reads", "/read/", 90.0)
    assert reads.peers == (
        Peer(address="127.0.0.1:9001", weight=3),
        Peer(address="127.0.0.1:80"),
    )
    assert (writes.name, writes.location) == ("writes", "/old")
    assert writes.retry_non_idempotent
    assert [p.address for p in writes.peers] == ["unix:/run/w.sock", "[::1]:9002"]
    told = capsys.readouterr().out
    for note in (
        "server 127.0.0.1:9003 is `backup` and is left out",
        "`max_conns=10` is not kept",
        "`queue_of_somebody 5` in upstream writes is not kept",
        "random becomes least_conn",
        "proxy_pass http://127.0.0.1:9 goes to 127.0.0.1:9 without an upstream",
        "proxy_pass http://$arg_to: where it goes is only known at run time",
        "fastcgi_pass to php: only proxy_pass is balanced",
        "upstream sticky is left alone: ip_hash ties clients to servers",
        "upstream unused is left alone: no proxy_pass goes to it",
        "remove `upstream reads` at ",
        f'include "{output.with_name("upstreams.conf")}";',
        "vhost_traffic_status_zone",
    ):
        assert note in told, note


def test_what_is_adopted_works_in_that_nginx(existing: Path, tmp_path: Path) -> None:
    """With the include added and the old blocks removed, as told, nginx accepts all; here with a
    status page of one's own, as the VTS module is not there."""
    output = tmp_path / "trimtab.toml"
    conf = existing.read_text().replace(
        "server_name b.example;",
        "server_name b.example;\nlocation /stats { return 200; #DISPLAY\n}",
    )
    # crossplane reads the directive although this nginx does not know it.
    existing.write_text(conf.replace("#DISPLAY", "vhost_traffic_status_display;\n"))
    assert main(["init", "--from", str(existing), "--output", str(output)]) == 0
    found = config.load(output)
    listen = re.search(r"listen (127\S+);", conf)
    assert listen is not None
    assert found.stock.vts_url == (f"http://{listen[1]}/stats/format/json",)
    existing.write_text(
        conf.replace("include conf.d", f'include "{found.stock.include_file}";\n    include conf.d')
    )
    rest = UPSTREAMS[UPSTREAMS.index("upstream php") :]
    (existing.parent / "conf.d" / "upstreams.conf").write_text(rest)
    done = subprocess.run(
        [nginx_binary.find("nginx").path, "-e", "stderr", "-t", "-c", str(existing)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_files_are_never_overwritten(
    existing: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An output that exists, be it the TOML or the include, is an error and stays."""
    output = tmp_path / "trimtab.toml"
    output.write_text("mine")
    assert main(["init", "--output", str(output)]) == 2
    assert main(["init", "--from", str(existing), "--output", str(output)]) == 2
    include = tmp_path / "include.conf"
    include.write_text("mine")
    other = tmp_path / "other.toml"
    arguments = ["--output", str(other), "--include", str(include)]
    assert main(["init", "--from", str(existing), *arguments]) == 2
    assert "exists and is left as it is" in capsys.readouterr().err
    assert not other.exists()
    assert output.read_text() == include.read_text() == "mine"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("events {}\n", "has no http block"),
        ("http { server { } }\n", "has no upstream that Trimtab can balance"),
        ("http { upstream a { server x;\n", "no http block|no upstream"),
    ],
)
def test_a_configuration_without_upstreams_is_an_error(
    text: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing to adopt, or nothing that can be read: one sentence, and no file."""
    source = tmp_path / "nginx.conf"
    source.write_text(text)
    output = tmp_path / "trimtab.toml"
    assert main(["init", "--from", str(source), "--output", str(output)]) == 2
    assert re.search(told, capsys.readouterr().err)
    assert not output.exists()
    assert main(["init", "--from", str(tmp_path / "absent"), "--output", str(output)]) == 2


def test_the_starter_is_valid_and_shows_every_key_with_its_default(tmp_path: Path) -> None:
    """Without --from a commented file is written: it loads as it is, each key is in it, and those
    that are commented out say the default."""
    output = tmp_path / "trimtab.toml"
    assert main(["init", "--output", str(output)]) == 0
    as_is = config.load(output)
    assert as_is.nginx.mode == "lua"
    text = output.read_text()
    assert text == starter()
    sections = {f.name: f.default_factory for f in fields(Config) if callable(f.default_factory)}
    shown = re.findall(r"^(?:# )?([a-z_]+) = ", text, re.MULTILINE)
    for cls in (*sections.values(), Upstream, Peer):
        assert is_dataclass(cls)
        for key in fields(cls):
            if "check" in key.metadata:
                assert key.name in shown, f"{key.name} is missing in the starter"
    # Those whose default is not the absence of something.
    optional = ("instance", "vts_url", "vts_ca_file", "deadline_seconds", "slots", "trained")
    optional = (*optional, "token_file", "token_variable", "max_wait_seconds")
    optional = (*optional, "balancer_token_file", "tls_certificate", "tls_key", "tls_client_ca")
    optional = (*optional, "max_connection_age_seconds", "traces_url", "url", "password_file")
    optional = (*optional, "policy_servers")
    optional = (*optional, "policy_ca", "policy_certificate", "policy_key")
    optional = (*optional, "try_timeout_seconds", "check_path", "discipline")
    given = re.sub(r"^# (?=[a-z_]+ = )", "", text, flags=re.MULTILINE)
    given = "\n".join(s for s in given.splitlines() if s.partition(" = ")[0] not in optional)
    uncommented = config.parse(given, str(output))
    assert uncommented == as_is
