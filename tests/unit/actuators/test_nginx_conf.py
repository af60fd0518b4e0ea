"""Rendering: what is written, that it is always the same, and that nothing breaks out."""

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nginx_samples import CONFIG, MACHINE, PREFIX, found, parsed, weights
from trimtab import __version__
from trimtab.actuators import nginx_conf, upstreams_conf
from trimtab.actuators.nginx_conf import Machine, render
from trimtab.config import Peer, Policy, Stock
from trimtab.errors import ConfigError, TrimtabError
from trimtab.model import PeerWeight, Weights

GOLDEN = Path(__file__).parents[2] / "data" / "nginx_conf"


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("lua", {}),
        ("stock", {"mode": "stock", "weights": weights(a=PeerWeight(), b=PeerWeight(rate=2.0))}),
        ("plain", {"observe": False, "balancer": "random_two", "layout": "one_group"}),
    ],
)
def test_the_files_are_those_that_were_reviewed(case: str, options: dict[str, Any]) -> None:
    """Each mode gives, byte for byte, the reviewed files in tests/data/nginx_conf."""
    files = render(CONFIG, PREFIX, machine=MACHINE, **options)
    expected = {path.name: path.read_text() for path in sorted((GOLDEN / case).iterdir())}
    shown = {n: t.replace(f"trimtab {__version__}", "trimtab X") for n, t in files.items()}
    assert shown == expected


def test_rendering_twice_gives_the_same() -> None:
    """Nothing but the arguments goes in: no clock, no host name, no order of a set."""
    assert render(CONFIG, PREFIX, machine=MACHINE) == render(CONFIG, PREFIX, machine=MACHINE)


def test_the_hook_is_told_what_is_known_and_nothing_else() -> None:
    """trimtab.json leaves out slots and deadlines that are not configured."""
    told = json.loads(render(CONFIG, PREFIX, machine=MACHINE)["trimtab.json"])
    reads, writes = told["upstreams"]
    assert told["balance"] is True
    assert reads["peers"][0] == {"address": "10.0.0.1:80", "slots": 4, "weight": 1}
    assert reads["peers"][1] == {"address": "[2001:db8::1]:80", "weight": 1}
    assert "deadline_seconds" not in reads
    assert writes["deadline_seconds"] == 0.25


@pytest.mark.parametrize("balancer", ["round_robin", "least_conn", "random_two"])
def test_with_another_balancer_the_hook_only_counts(balancer: str, tmp_path: Path) -> None:
    """Baselines keep access and log, but no Lua picks the server."""
    files = render(CONFIG, PREFIX, machine=MACHINE, balancer=balancer)
    assert json.loads(files["trimtab.json"])["balance"] is False
    assert "balancer_by_lua" not in files["upstreams.conf"]
    assert len(found(parsed(files["nginx.conf"], tmp_path), "log_by_lua_block")) == 2


def test_who_is_never_held_has_no_access_hook(tmp_path: Path) -> None:
    """With hold = "off" the balancer phase is where a request is first seen; one whose server
    nginx itself picks is counted on arrival."""
    reads, writes = CONFIG.upstreams
    config = replace(CONFIG, upstreams=(replace(reads, hold="off"), writes))
    for balancer, hooks in (("trimtab", 1), ("least_conn", 2)):
        files = render(config, PREFIX, machine=MACHINE, balancer=balancer)
        tree = parsed(files["nginx.conf"], tmp_path)
        assert len(found(tree, "access_by_lua_block")) == hooks
        assert len(found(tree, "log_by_lua_block")) == 2


@pytest.mark.parametrize(
    ("balancer", "directive", "arguments"),
    [("least_conn", "least_conn", []), ("random_two", "random", ["two", "least_conn"])],
)
def test_a_balancer_is_nginx_own_directive(
    balancer: str, directive: str, arguments: list[str], tmp_path: Path
) -> None:
    """The names of balancers stand for nginx's directives, in each group."""
    files = render(CONFIG, PREFIX, machine=MACHINE, balancer=balancer, observe=False)
    assert found(parsed(files["upstreams.conf"], tmp_path), directive) == [arguments] * 2


def test_one_group_has_every_server_once(tmp_path: Path) -> None:
    """The layout one_group sends all classes to one upstream with the union of the servers."""
    files = render(CONFIG, PREFIX, observe=False, balancer="least_conn", layout="one_group")
    servers = found(parsed(files["upstreams.conf"], tmp_path), "server")
    assert [s[0] for s in servers] == ["10.0.0.1:80", "[2001:db8::1]:80", "unix:/run/b"]
    passes = found(parsed(files["nginx.conf"], tmp_path), "proxy_pass")
    assert passes == [["http://trimtab_shared"]] * 2


def test_plain_nginx_needs_no_module(tmp_path: Path) -> None:
    """Without observation neither Lua nor VTS is mentioned."""
    text = "".join(render(CONFIG, PREFIX, balancer="least_conn", observe=False).values())
    tree = parsed(text, tmp_path)
    assert found(tree, "load_module") == []
    assert "_by_lua" not in text
    assert "vhost_traffic_status" not in text


def test_several_workers_share_the_counts_of_nginx_own_balancers(tmp_path: Path) -> None:
    """A `zone` is there as soon as two workers would count apart."""
    for workers, zones in ((1, 0), (2, 2), ("auto", 2)):
        config = replace(CONFIG, nginx=replace(CONFIG.nginx, worker_processes=workers))
        files = render(config, PREFIX, balancer="least_conn", observe=False)
        assert len(found(parsed(files["upstreams.conf"], tmp_path), "zone")) == zones


def test_requests_are_tried_again_as_the_operator_says(tmp_path: Path) -> None:
    """Failed answers are tried elsewhere; POST only with retry_non_idempotent."""
    tree = parsed(render(CONFIG, PREFIX, machine=MACHINE)["nginx.conf"], tmp_path)
    common = ["error", "timeout", "http_500", "http_502", "http_503", "http_504"]
    assert found(tree, "proxy_next_upstream") == [common, [*common, "non_idempotent"]]
    plain = render(CONFIG, PREFIX, machine=MACHINE, retry_statuses=())["nginx.conf"]
    assert found(parsed(plain, tmp_path), "proxy_next_upstream")[0] == ["error", "timeout"]


def test_stock_mode_has_what_vts_needs(tmp_path: Path) -> None:
    """Zone, histogram, JSON display for loopback only, and `zone` in each upstream."""
    files = render(CONFIG, PREFIX, mode="stock")
    tree = parsed(files["nginx.conf"], tmp_path)
    assert found(tree, "vhost_traffic_status_zone") == [["shared:trimtab_vts:4m"]]
    (buckets,) = found(tree, "vhost_traffic_status_histogram_buckets")
    bounds = [float(b) for b in buckets]
    assert len(bounds) <= 32
    assert bounds == sorted(set(bounds))
    assert found(tree, "vhost_traffic_status_filter_by_set_key") == [
        ["reads", "class"],
        ["writes", "class"],
    ]
    tree = parsed(files["upstreams.conf"], tmp_path)
    assert found(tree, "vhost_traffic_status_display_format") == [["json"]]
    assert found(tree, "deny") == [["all"]]
    assert found(tree, "least_conn") == [[], []]
    assert len(found(tree, "zone")) == 2


def test_the_operator_s_own_status_page_needs_nothing_from_us(tmp_path: Path) -> None:
    """With vts_url no VTS directive is rendered, and the generation is still told."""
    config = replace(CONFIG, stock=Stock(vts_url=("http://x/",)))
    files = render(config, PREFIX, mode="stock")
    assert "vhost_traffic_status" not in "".join(files.values())
    tree = parsed(files["upstreams.conf"], tmp_path)
    assert ["=", "/trimtab/generation"] in found(tree, "location")


def test_round_robin_has_the_square_root_rule(tmp_path: Path) -> None:
    """Capacities 1 : 4 at 70% load become shares 1 : 6, and no method directive is written."""
    config = replace(CONFIG, stock=Stock(method="round_robin", load_ratio=0.7))
    learned = weights(a=PeerWeight(), b=PeerWeight(rate=4.0))
    text, _ = upstreams_conf.render_upstreams(config, learned)
    tree = parsed(text, tmp_path)
    assert found(tree, "least_conn") == []
    first, second = (int(s[1].removeprefix("weight=")) for s in found(tree, "server")[:2])
    # 1 − 1·1.5/3 = 0.5 and 4 − 2·1.5/3 = 3
    assert second / first == pytest.approx(6.0, rel=0.01)


def test_the_upstream_file_alone_is_that_of_the_whole() -> None:
    """Rendering only the upstreams gives the same file, and its token names the content."""
    learned = weights(a=PeerWeight(), b=PeerWeight(rate=2.0))
    text, token = upstreams_conf.render_upstreams(CONFIG, learned)
    assert text == render(CONFIG, PREFIX, mode="stock", weights=learned)["upstreams.conf"]
    assert f'return 200 "trimtab {token}\\n";' in text
    later = replace(learned, generation=8, reason="another")
    _, other = upstreams_conf.render_upstreams(CONFIG, later)
    assert (token[:4], other[:4]) == ("0-7-", "0-8-")
    assert token[4:] == other[4:]
    _, changed = upstreams_conf.render_upstreams(CONFIG, weights(a=PeerWeight(rate=5.0)))
    assert changed[4:] != token[4:]
    without, _ = upstreams_conf.render_upstreams(CONFIG, learned, status=False)
    assert "vhost_traffic_status" not in without


@pytest.mark.parametrize(
    ("learned", "expected"),
    [
        # W, affinity and rate of the per-request rule become one weight (4^1.25 = 5.66); slots are
        # not all known.
        (weights(a=PeerWeight(weight=3.0), b=PeerWeight(rate=1.0)), ["weight=3", "weight=1"]),
        (weights(a=PeerWeight(rate=2.0), b=PeerWeight(affinity=2.0)), ["weight=17", "weight=3"]),
        # Now they are: 4 from the configuration, 1 estimated.
        (weights(a=PeerWeight(), b=PeerWeight(slots=1.0)), ["weight=17", "weight=3"]),
        # A peer that the weights do not know yet is neutral.
        (weights(a=PeerWeight(weight=0.5)), ["weight=1", "weight=2"]),
    ],
)
def test_learned_weights_are_rendered_in_stock_mode(
    learned: Weights, expected: list[str], tmp_path: Path
) -> None:
    """w = W·(k·r / a)^1.25 for the learned class, the static weights for the other one."""
    files = render(CONFIG, PREFIX, mode="stock", weights=learned)
    servers = found(parsed(files["upstreams.conf"], tmp_path), "server")
    ours = [s[1] for s in servers if len(s) > 1]
    assert ours == [*expected, "weight=3", "weight=1"]
    assert files["upstreams.conf"].startswith(
        "# Upstream groups for Trimtab: generation 7, learned weights (a test).\n"
    )


def test_a_drained_peer_is_down(tmp_path: Path) -> None:
    """Draining marks the server down and leaves the others' ratios alone."""
    learned = weights(a=PeerWeight(drain=True), b=PeerWeight(weight=3.0))
    files = render(CONFIG, PREFIX, mode="stock", weights=learned)
    servers = found(parsed(files["upstreams.conf"], tmp_path), "server")
    assert servers[:2] == [
        ["10.0.0.1:80", "weight=1", "max_fails=3", "down"],
        ["[2001:db8::1]:80", "weight=1", "max_fails=3"],
    ]


def test_a_location_for_everything_replaces_our_404(tmp_path: Path) -> None:
    """With a class at "/" there is no second location "/" in the clients' server."""
    config = replace(CONFIG, upstreams=(replace(CONFIG.upstreams[0], location="/"),))
    tree = parsed(render(config, PREFIX, machine=MACHINE)["nginx.conf"], tmp_path)
    clients = next(e for e in tree if e["directive"] == "http")["block"]
    server = next(e for e in clients if e["directive"] == "server")["block"]
    assert found(server, "location") == [["/"]]


@pytest.mark.parametrize("seconds", [0.05, 1.5, 60.0, 0.0501])
def test_times_are_whole_milliseconds(seconds: float, tmp_path: Path) -> None:
    """nginx's times lose nothing down to the millisecond and are never rounded to 0."""
    config = replace(CONFIG, upstreams=(replace(CONFIG.upstreams[0], timeout_seconds=seconds),))
    tree = parsed(render(config, PREFIX, machine=MACHINE)["nginx.conf"], tmp_path)
    ((text,),) = found(tree, "proxy_read_timeout")
    shown = float(text[:-2]) / 1000 if text.endswith("ms") else float(text[:-1])
    assert seconds <= shown < seconds + 0.001


def test_wildcard_addresses_are_reached_over_loopback() -> None:
    """The hook connects to 127.0.0.1 or ::1 where nginx or the policy server listens on all."""
    config = replace(
        CONFIG,
        policy=Policy(listen="0.0.0.0:18290"),
        nginx=replace(CONFIG.nginx, internal_listen="[::]:18081"),
    )
    files = render(config, PREFIX, machine=MACHINE)
    assert json.loads(files["trimtab.json"])["bridge"] == "[::1]:18081"
    assert "server 127.0.0.1:18290 max_fails=0;" in files["upstreams.conf"]


SECURE = replace(
    CONFIG,
    policy=Policy(
        tls_certificate=Path("/s.pem"), tls_key=Path("/s.key"), tls_client_ca=Path("/ca.pem")
    ),
    nginx=replace(
        CONFIG.nginx,
        policy_ca=Path("/ca.pem"),
        policy_name="policy.example",
        policy_certificate=Path("/n.pem"),
        policy_key=Path("/n.key"),
    ),
)


def test_the_bridge_speaks_tls_when_the_policy_server_does(tmp_path: Path) -> None:
    """grpcs, verified against policy_ca and policy_name, with nginx's own certificate."""
    tree = parsed(render(SECURE, PREFIX, machine=MACHINE)["nginx.conf"], tmp_path)
    assert found(tree, "grpc_pass") == [["grpcs://trimtab_policy"]]
    assert found(tree, "grpc_ssl_verify") == [["on"]]
    assert found(tree, "grpc_ssl_trusted_certificate") == [["/ca.pem"]]
    assert found(tree, "grpc_ssl_name") == [["policy.example"]]
    assert found(tree, "grpc_ssl_certificate") == [["/n.pem"]]
    assert found(tree, "grpc_ssl_certificate_key") == [["/n.key"]]


@pytest.mark.parametrize(
    ("missing", "told"),
    [("policy_ca", "policy_ca in .nginx. is not"), ("policy_certificate", "nginx needs policy_c")],
)
def test_tls_that_cannot_work_is_refused(missing: str, told: str) -> None:
    """Without authorities, or without a certificate under mutual TLS, nothing is rendered."""
    with pytest.raises(ConfigError, match=told):
        render(
            replace(SECURE, nginx=replace(SECURE.nginx, **{missing: None})), PREFIX, machine=MACHINE
        )


def test_the_token_is_in_a_file_of_its_owner(tmp_path: Path) -> None:
    """The token stands, escaped, in one included file of mode 0600, and nowhere else."""
    token = 'a"b;d{e}f#0123456789'
    files = render(CONFIG, tmp_path, machine=MACHINE, balancer_token=token)
    nginx_conf.write(files, tmp_path)
    file = tmp_path / nginx_conf.TOKEN_FILE
    assert [n for n, t in files.items() if "0123456789" in t] == [nginx_conf.TOKEN_FILE]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    tree = parsed(file.read_text(), tmp_path)
    assert found(tree, "grpc_set_header") == [["Authorization", f"Bearer {token}"]]
    assert [str(file)] in found(parsed(files["nginx.conf"], tmp_path), "include")
    file.chmod(0o644)
    assert nginx_conf.write(files, tmp_path) == []
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("localhost:80", "getent hosts localhost"),
        ("backend.example:80", "host name"),
        ("127.0.0.01:80", "host name"),
        ("[2001:DB8:0::1]:80", r"write it as nginx does: '\[2001:db8::1\]:80'"),
    ],
)
def test_lua_mode_refuses_addresses_that_nginx_would_report_otherwise(
    address: str, told: str
) -> None:
    """Host names and other spellings of an address are errors in lua mode and fine in stock."""
    upstream = replace(CONFIG.upstreams[0], peers=(Peer(address=address),))
    config = replace(CONFIG, upstreams=(upstream,))
    with pytest.raises(ConfigError, match=told):
        render(config, PREFIX, machine=MACHINE)
    assert f"server {address} " in render(config, PREFIX, mode="stock")["upstreams.conf"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"mode": "envoy"}, "allowed: lua, stock"),
        ({"balancer": "magic"}, "allowed: trimtab, round_robin"),
        ({"layout": "heap"}, "allowed: per_class, one_group"),
        ({"observe": False}, "no balancer 'trimtab'"),
        ({"layout": "one_group"}, "needs the layout per_class"),
        ({"weights": weights()}, "stock mode only"),
        ({"directory": Path("var")}, "not absolute"),
        ({"directory": Path("/srv/a*b")}, "pattern"),
        ({"directory": Path("/srv/$x")}, "variable"),
        ({"machine": Machine(lua_directory="/srv/a;b")}, "package path"),
    ],
)
def test_arguments_that_contradict_each_other_are_refused(
    options: dict[str, Any], told: str
) -> None:
    """What cannot be rendered is an error that says why."""
    directory = options.pop("directory", PREFIX)
    with pytest.raises(ConfigError, match=told):
        render(CONFIG, directory, **{"machine": MACHINE, **options})


@pytest.mark.parametrize(
    ("slots", "connections"), [((None, None), "64"), ((200, None), "432"), ((9000, 9000), "1024")]
)
def test_kept_connections_are_as_many_as_the_load_needs(
    slots: tuple[int | None, ...], connections: str, tmp_path: Path
) -> None:
    """32 a server, or twice its slots, within bounds; in both modes."""
    first, *rest = CONFIG.upstreams
    peers = tuple(replace(p, slots=k) for p, k in zip(first.peers, slots, strict=True))
    config = replace(CONFIG, upstreams=(replace(first, peers=peers), *rest))
    for mode in ("lua", "stock"):
        files = render(config, PREFIX, machine=MACHINE, mode=mode)
        assert found(parsed(files["upstreams.conf"], tmp_path), "keepalive")[0] == [connections]


@pytest.mark.parametrize("names", [("reads", "READS"), ("trimtab_policy", "a")])
def test_names_that_nginx_would_mix_up_are_refused(names: tuple[str, str]) -> None:
    """nginx ignores case in upstream names, and two of them are ours."""
    upstreams = tuple(replace(u, name=n) for u, n in zip(CONFIG.upstreams, names, strict=True))
    with pytest.raises(ConfigError, match=r"reserved|ignores case"):
        render(replace(CONFIG, upstreams=upstreams), PREFIX, machine=MACHINE)


def test_files_are_replaced_whole_and_only_when_they_change(tmp_path: Path) -> None:
    """Writing the same again changes nothing; nothing temporary stays."""
    directory = tmp_path / "a" / "b"
    assert nginx_conf.write({"x": "1\n", "y": "2\n"}, directory) == ["x", "y"]
    inode = (directory / "x").stat().st_ino
    assert nginx_conf.write({"x": "1\n", "y": "3\n"}, directory) == ["y"]
    assert (directory / "x").stat().st_ino == inode
    assert (directory / "y").read_text() == "3\n"
    assert sorted(p.name for p in directory.iterdir()) == ["x", "y"]


def test_a_directory_that_cannot_be_written_is_one_message(tmp_path: Path) -> None:
    """An output directory below a file is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TrimtabError, match=r"cannot write .*file/x"):
        nginx_conf.write({"a": ""}, tmp_path / "file" / "x")
