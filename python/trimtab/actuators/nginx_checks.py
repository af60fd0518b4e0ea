"""What nginx needs of a configuration beyond what `config` has checked: names, addresses, TLS.

Pure: a configuration in; plain data out, or a ConfigError.
"""

import ipaddress
from typing import Final

from trimtab.actuators.groups import SHARED_GROUP
from trimtab.config import Config, split_address
from trimtab.errors import ConfigError

__all__ = ["check", "local", "policy_addresses", "policy_tls"]

# Names of our own upstream groups.
_POLICY_GROUP: Final = "trimtab_policy"


def _refuse_names(address: str, key: str) -> None:
    """In lua mode Lua connects and nginx reports addresses, so names would match nothing."""
    try:
        host, port = split_address(address)
    except ValueError as error:
        raise ConfigError(f"{key} is {address!r}; it must be {error}") from None
    if host.startswith("unix:"):
        return
    try:
        ip = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        raise ConfigError(
            f"{key} is {address!r}, a host name; lua mode needs the IP address "
            f"(`getent hosts {host}` shows it), as nginx counts and connects by it"
        ) from None
    shown = f"[{ip}]" if ip.version == 6 else str(ip)
    if f"{shown}:{port}" != address:
        raise ConfigError(f"{key} is {address!r}; write it as nginx does: '{shown}:{port}'")


def local(address: str) -> str:
    """Where to connect on this machine to what listens on `address`."""
    host, port = split_address(address)
    return {"0.0.0.0": f"127.0.0.1:{port}", "[::]": f"[::1]:{port}"}.get(host, address)  # noqa: S104


def policy_addresses(config: Config) -> list[str]:
    """Where the hook's bridge finds policy servers."""
    return [local(address) for address in config.nginx.policy_servers or (config.policy.listen,)]


def check(config: Config, hook: bool) -> None:
    """What nginx needs beyond what `config` has checked."""
    seen: dict[str, str] = {}
    for upstream in config.upstreams:
        name = upstream.name
        if name.lower() in (_POLICY_GROUP, SHARED_GROUP):
            raise ConfigError(f"{config.path}: the upstream name {name!r} is reserved; change it")
        if seen.setdefault(name.lower(), name) != name:
            raise ConfigError(
                f"{config.path}: the upstream names {name!r} and {seen[name.lower()]!r} "
                "are one to nginx, which ignores case; change one"
            )
        if hook:
            for peer in upstream.peers:
                key = f"{config.path}: address in [[upstream.peer]] of {name!r}"
                _refuse_names(peer.address, key)
    if hook:
        _refuse_names(config.policy.listen, f"{config.path}: listen in [policy]")
        for address in config.nginx.policy_servers:
            _refuse_names(address, f"{config.path}: policy_servers in [nginx]")
        _refuse_names(config.nginx.internal_listen, f"{config.path}: internal_listen in [nginx]")


def policy_tls(config: Config) -> dict[str, str] | None:
    """How the bridge speaks TLS to the policy server; None when it does not. Raises ConfigError."""
    nginx = config.nginx
    if config.policy.tls_certificate is None:
        return None
    if nginx.policy_ca is None:
        raise ConfigError(
            f"{config.path}: tls_certificate in [policy] is set, and policy_ca in [nginx] is not: "
            "name the authorities that nginx checks the policy server's certificate with (the "
            "certificate itself, when it is self-signed)"
        )
    if config.policy.tls_client_ca and nginx.policy_certificate is None:
        raise ConfigError(
            f"{config.path}: tls_client_ca in [policy] is set, so nginx needs policy_certificate "
            "and policy_key in [nginx]"
        )
    files = {
        "ca": nginx.policy_ca,
        "certificate": nginx.policy_certificate,
        "key": nginx.policy_key,
    }
    absolute = {name: str(path.absolute()) if path else "" for name, path in files.items()}
    return {"name": nginx.policy_name, **absolute}
