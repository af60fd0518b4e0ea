"""Nothing that comes from a configuration breaks out of its place in nginx's configuration."""

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import jinja2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nginx_samples import CONFIG, MACHINE, PREFIX, parsed, shape, weights
from trimtab.actuators import nginx_binary, nginx_conf, safe_text, templates
from trimtab.actuators.nginx_conf import render
from trimtab.config import Policy
from trimtab.errors import ConfigError

HOSTILE = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="a/:;{}\"'\\#$ \n\r\t[]-.*?%\x00", max_size=20),
    st.lists(
        st.sampled_from(
            ["a", "/x", "127.0.0.1:80", ";", "}", "{", '"', "'", "\\", "\n", "# ", " on;", "$host",
             "]]", "--", "{{ 7 }}", "{% raw %}", "unix:/x", "include /etc/passwd;",
             '")', "os.exit()"]
        ),
        max_size=6,
    ).map("".join),
)  # fmt: skip


def with_value(place: str, value: str, real: Path | None = None) -> Mapping[str, str]:
    """The rendered files with `value` in one place, past the checks of `config`: in lua mode, or
    for an nginx in the directory `real` in stock mode."""
    first, *rest = CONFIG.upstreams
    config, options = CONFIG, {"machine": MACHINE, "mode": "lua"}
    prefix = PREFIX
    if real is not None:
        options = {"machine": nginx_conf.Machine(open_files=1024), "mode": "stock"}
        prefix = real
    match place:
        case "name" | "location":
            config = replace(CONFIG, upstreams=(replace(first, **{place: value}), *rest))
        case "peer":
            peers = (replace(first.peers[0], address=value), *first.peers[1:])
            config = replace(CONFIG, upstreams=(replace(first, peers=peers), *rest))
        case "stock peer":
            peers = (replace(first.peers[0], address=value), *first.peers[1:])
            config = replace(CONFIG, upstreams=(replace(first, peers=peers), *rest))
            options["mode"] = "stock"
        case "listen":
            config = replace(CONFIG, nginx=replace(CONFIG.nginx, listen=(value,)))
        case "internal_listen" | "instance" | "worker_processes":
            config = replace(CONFIG, nginx=replace(CONFIG.nginx, **{place: value}))
        case "policy":
            config = replace(CONFIG, policy=Policy(listen=value))
        case "path":
            config = replace(CONFIG, path=value)
        case "module":
            options["machine"] = replace(MACHINE, load_modules=(value, value))
        case "user":
            options["machine"] = replace(MACHINE, user=(value, value))
        case "lua_directory":
            options["machine"] = replace(MACHINE, lua_directory=value)
        case "directory":
            return render(CONFIG, Path("/" + value), **options)
        case "reason":
            options |= {"mode": "stock", "weights": replace(weights(), reason=value)}
    if real is not None:
        config = replace(config, stock=replace(config.stock, vts_url=("http://127.0.0.1:9/",)))
    return render(config, prefix, **options)


PLACES = {
    "name": "x", "location": "/x", "peer": "10.0.0.9:80", "stock peer": "10.0.0.9:80",
    "listen": "127.0.0.1:80", "internal_listen": "127.0.0.1:80", "policy": "127.0.0.1:80",
    "instance": "x", "worker_processes": "3", "path": "x", "module": "/x.so", "user": "x",
    "lua_directory": "/x", "directory": "x", "reason": "x",
}  # fmt: skip


@cache
def tame(place: str) -> Mapping[str, str]:
    """The rendered files with a harmless value in one place."""
    return with_value(place, PLACES[place])


@pytest.mark.parametrize("place", PLACES)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=HOSTILE)
def test_no_value_breaks_out_of_its_place(place: str, value: str, tmp_path: Path) -> None:
    """Whatever a value is, it is refused, or directives and blocks are those of a tame value."""
    try:
        files = with_value(place, value)
    except ConfigError:
        return
    for name in ("nginx.conf", "upstreams.conf"):
        got, expected = (
            shape(parsed(files[name], tmp_path)),
            shape(parsed(tame(place)[name], tmp_path)),
        )
        if place == "location" and value == "/":
            continue
        assert got == expected
    if "trimtab.json" in files:
        json.loads(files["trimtab.json"])


# In stock mode with statistics elsewhere every nginx takes what is rendered.
REAL_PLACES = (
    "name", "location", "stock peer", "listen", "internal_listen", "worker_processes", "path",
    "reason",
)  # fmt: skip
# nginx makes this file when it reads a directive that names it as a log.
CANARY = "/trimtab-canary"
ESCAPES = st.tuples(
    st.sampled_from(["", "x", "/x", "127.0.0.1:80", "unix:/x"]),
    st.sampled_from(
        [";", "};", '";', "';", "\n", "\r", " #\n", "\\;", "\u2028", "};}", "$x;", "{"]
    ),
    st.sampled_from(["", " ", "\n", "}\n", "}}\n"]),
    st.sampled_from(["error_log DIR;", "access_log DIR;", "pid DIR;", "include DIR;"]),
    st.sampled_from(["", "#", '"', "server {", "location /z {", "upstream z {"]),
).map("".join)
# What nginx says of a configuration whose blocks and directives are not what was meant.
BROKEN = re.compile(
    "unknown directive|unexpected|not terminated|not allowed here|is duplicate|has no opening"
    "|invalid number of arguments|invalid parameter"
)


@pytest.mark.parametrize("place", REAL_PLACES)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=st.one_of(ESCAPES, HOSTILE))
def test_the_real_nginx_reads_no_directive_out_of_a_value(
    place: str, value: str, tmp_path: Path
) -> None:
    """A value that asks nginx to open a file is refused, or nginx reads it as a value: it opens no
    such file, and finds nothing wrong with the directives."""
    canary = f"{tmp_path}{CANARY}"
    try:
        files = with_value(place, value.replace("DIR", canary), real=tmp_path)
    except ConfigError:
        return
    nginx_conf.write(files, tmp_path)
    nginx = nginx_binary.find("nginx").path
    command = [nginx, "-t", "-e", "stderr", "-p", f"{tmp_path}/", "-c", f"{tmp_path}/nginx.conf"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    assert not Path(canary).exists()
    assert not BROKEN.search(done.stderr), done.stderr
    if place in ("path", "reason"):  # comments
        assert done.returncode == 0, done.stderr


def test_a_template_cannot_write_a_value_without_a_filter() -> None:
    """A forgotten filter fails for every value, a harmless one too."""
    template = templates.environment().from_string("user {{ name }};")
    with pytest.raises(TypeError, match="without a filter"):
        template.render(name="nobody")


def test_a_template_cannot_write_what_is_not_defined() -> None:
    """A misspelt variable is an error, not an empty string."""
    template = templates.environment().from_string("user {{ nmae|name }};")
    with pytest.raises((jinja2.UndefinedError, TypeError)):
        template.render(name="nobody")


@pytest.mark.parametrize(
    ("filter_name", "value"),
    [
        ("seconds", -1.0),
        ("seconds", float("nan")),
        ("whole", "1"),
        ("bare", ""),
        ("bare", "a b"),
        ("location", "~ \\.php$"),
        ("name", "a/b"),
        ("quoted", "\udcff"),
        ("quoted", "a\nb"),
        ("exec", "a\0"),
    ],
)
def test_filters_refuse_what_they_cannot_make_safe(filter_name: str, value: object) -> None:
    """Each filter raises ConfigError rather than change a value's meaning."""
    with pytest.raises(ConfigError):
        safe_text.FILTERS[filter_name](value)
