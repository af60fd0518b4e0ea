"""Certificates are tried out at the start: what cannot work is refused with key and file."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

import serving
from certificates import Pair, authority, signed
from trimtab import tls
from trimtab.config import Config, Nginx, Policy
from trimtab.errors import ConfigError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    """An authority, what it signed, and a stranger's authority."""
    directory = tmp_path_factory.mktemp("certificates")
    root = authority(directory)
    stranger = authority(directory, "stranger")
    return {
        "root": root,
        "stranger": stranger,
        "server": signed(root, directory, "server"),
        "other": signed(root, directory, "other", host="elsewhere.example"),
        "balancer": signed(root, directory, "balancer"),
        "expired": signed(root, directory, "expired", days=0),
    }


def test_a_good_pair_is_read(made: dict[str, Pair]) -> None:
    """Certificate, key and authorities come as they are in their files, with the days left."""
    got = tls.credentials(
        Policy(
            tls_certificate=made["server"].certificate,
            tls_key=made["server"].key,
            tls_client_ca=made["root"].certificate,
        )
    )
    assert got is not None
    assert got.certificate == made["server"].certificate.read_bytes()
    assert got.key == made["server"].key.read_bytes()
    assert got.client_ca == made["root"].certificate.read_bytes()
    assert 29 < got.days_left <= 30
    assert "PRIVATE" not in repr(got)


def test_no_certificate_is_no_tls() -> None:
    """Without the keys there is nothing to read."""
    assert tls.credentials(Policy()) is None


@pytest.mark.parametrize(
    ("certificate", "key", "client_ca", "told"),
    [
        ("server", "balancer", None, "make no pair: .*key values mismatch"),
        ("expired", "expired", None, "expired.pem', cannot be used: certificate has expired"),
        ("server", "server", "empty", "tls_client_ca in .policy. .*no PEM file"),
        ("server", "server", "key", "tls_client_ca .*holds no certificates"),
        ("absent", "server", None, "tls_certificate in .policy. .*No such file"),
        ("server", "absent", None, "tls_key in .policy. .*No such file"),
        ("empty", "server", None, "tls_certificate in .policy. .*no PEM file"),
    ],
)
def test_what_cannot_work_is_refused(
    certificate: str,
    key: str,
    client_ca: str | None,
    told: str,
    made: dict[str, Pair],
    tmp_path: Path,
) -> None:
    """A wrong, missing or expired file is named with its key."""
    (tmp_path / "empty").write_text("nothing\n")

    def path(name: str, part: str) -> Path:
        return getattr(made[name], part) if name in made else tmp_path / name

    ca = made["server"].key if client_ca == "key" else client_ca and tmp_path / client_ca
    policy = Policy(
        tls_certificate=path(certificate, "certificate"), tls_key=path(key, "key"), tls_client_ca=ca
    )
    with pytest.raises(ConfigError, match=told):
        tls.credentials(policy)


def both(made: dict[str, Pair], **nginx: object) -> Config:
    """A policy server with mutual TLS, and an nginx."""
    policy = Policy(
        tls_certificate=made["server"].certificate,
        tls_key=made["server"].key,
        tls_client_ca=made["root"].certificate,
    )
    fine = Nginx(
        policy_ca=made["root"].certificate,
        policy_certificate=made["balancer"].certificate,
        policy_key=made["balancer"].key,
    )
    return replace(serving.configuration(), policy=policy, nginx=replace(fine, **nginx))


def test_nginx_and_server_that_fit_are_accepted(made: dict[str, Pair]) -> None:
    """The same authority, the right name, and a certificate for each: no error."""
    tls.check_balancer(both(made))
    tls.check_balancer(serving.configuration())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"policy_name": "elsewhere.example"}, "mismatch"),
        ({"policy_ca": "stranger"}, "issuer|self.signed"),
        ({"policy_certificate": None, "policy_key": None}, "CERTIFICATE"),
        ({"policy_certificate": "stranger", "policy_key": "stranger"}, "issuer|self.signed"),
    ],
)
def test_nginx_and_server_that_do_not_fit_are_told_apart(
    change: dict[str, str | None], told: str, made: dict[str, Pair]
) -> None:
    """A wrong name or authority, and a missing or foreign certificate of nginx's, are refused."""
    parts = {"policy_key": "key"}
    values = {
        key: getattr(made[value], parts.get(key, "certificate")) if value in made else value
        for key, value in change.items()
    }
    with pytest.raises(ConfigError, match="would not accept each other") as caught:
        tls.check_balancer(both(made, **values))

    assert re.search(told, str(caught.value))
