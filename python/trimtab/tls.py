"""Certificates of the gRPC address: read, and tried out before anybody relies on them.

A pair that cannot work (unreadable, not PEM, key of another certificate, expired) is refused at
the start and on SIGHUP with the key of the configuration that is to blame, rather than at every
balancer's handshake. Serving with them is the server's.
"""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from trimtab.config import Config, Policy
from trimtab.errors import ConfigError

__all__ = ["WARN_DAYS", "Credentials", "check_balancer", "credentials"]

# Certificates of 90 days are usually renewed at 30: one with less than this was forgotten.
WARN_DAYS: Final = 14

# A chain of a few certificates, or a bundle of authorities; what is larger is the wrong file.
_MOST_BYTES: Final = 1024 * 1024

_DAY_SECONDS: Final = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """PEM bytes for the server. `client_ca` is None without mutual TLS; `days_left` until the
    certificate expires."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None
    days_left: float

    def __repr__(self) -> str:
        return f"Credentials(days_left={self.days_left:.1f})"


def credentials(policy: Policy, now: Callable[[], float] = time.time) -> Credentials | None:
    """The certificates that [policy] names, tried out; None when it names none.

    Raises ConfigError, which names key and file and never shows what is in it.
    """
    if policy.tls_certificate is None or policy.tls_key is None:
        return None
    certificate = _read(policy.tls_certificate, "tls_certificate")
    key = _read(policy.tls_key, "tls_key")
    client_ca = None
    if policy.tls_client_ca is not None:
        client_ca = _read(policy.tls_client_ca, "tls_client_ca")
        _check_authorities(policy.tls_client_ca)
    server = _server_side(policy.tls_certificate, policy.tls_key)
    expires = _handshake(server, policy.tls_certificate)
    return Credentials(
        certificate=certificate,
        key=key,
        client_ca=client_ca,
        days_left=(expires - now()) / _DAY_SECONDS,
    )


def _read(path: Path, key: str) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{key} in [policy] is {str(path)!r}: {error.strerror}") from None
    if len(raw) > _MOST_BYTES or b"-----BEGIN " not in raw:
        raise ConfigError(f"{key} in [policy] is {str(path)!r}, which is no PEM file")
    return raw


def _check_authorities(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"tls_client_ca in [policy], {str(path)!r}, holds no certificates: {error}"
        ) from None


def _server_side(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # Without a password of ours OpenSSL would ask on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"tls_certificate {str(certificate)!r} and tls_key {str(key)!r} in [policy] make no "
            f"pair: {error}; the key must belong to the first certificate in the file and have no "
            "password"
        ) from None
    return context


def _handshake(server: ssl.SSLContext, certificate: Path) -> float:
    """When the certificate expires, in seconds since 1970, from a handshake in memory with a
    client that trusts it: what has expired or is not for servers fails here."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    # The certificate itself is the anchor: who signed it is the balancers' affair.
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    try:
        client.load_verify_locations(cafile=certificate)
        shown = _shake(server, client, None)
    except ssl.SSLError as error:
        raise ConfigError(
            f"tls_certificate in [policy], {str(certificate)!r}, cannot be used: {_reason(error)}"
        ) from None
    return float(ssl.cert_time_to_seconds(str(shown["notAfter"])))


def check_balancer(config: Config) -> None:
    """Whether the nginx of this configuration and the policy server will accept each other, by a
    handshake in memory. For where the files of both are at hand. Raises ConfigError."""
    policy, nginx = config.policy, config.nginx
    if policy.tls_certificate is None or policy.tls_key is None or nginx.policy_ca is None:
        return
    server = _server_side(policy.tls_certificate, policy.tls_key)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        client.load_verify_locations(cafile=nginx.policy_ca)
        if nginx.policy_certificate and nginx.policy_key:
            client.load_cert_chain(nginx.policy_certificate, nginx.policy_key, password=lambda: b"")
        if policy.tls_client_ca is not None:
            server.verify_mode = ssl.CERT_REQUIRED
            server.load_verify_locations(cafile=policy.tls_client_ca)
        _shake(server, client, nginx.policy_name)
    except (OSError, ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{config.path}: nginx and the policy server would not accept each other: "
            f"{_reason(error)}; see policy_ca, policy_name, policy_certificate and policy_key in "
            "[nginx], and tls_certificate and tls_client_ca in [policy]"
        ) from None


def _shake(server: ssl.SSLContext, client: ssl.SSLContext, name: str | None) -> dict[str, Any]:
    """A handshake without a network: the server's certificate as the client verified it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (one, other, one, other):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return dict(one.getpeercert() or {})


def _reason(error: Exception) -> str:
    return getattr(error, "verify_message", "") or getattr(error, "reason", "") or str(error)
