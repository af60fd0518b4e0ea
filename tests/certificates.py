"""Certificates for tests, made by openssl: an authority, and what it signs."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

# Elliptic curves: made in milliseconds, where RSA takes up to a second.
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def authority(directory: Path, name: str = "authority") -> Pair:
    """A certificate authority of its own."""
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    _openssl(
        "req", "-x509", *_KEY, "-keyout", pair.key, "-out", pair.certificate, "-days", "30",
        "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip
    return pair


def signed(
    by: Pair, directory: Path, name: str, *, host: str = "localhost", days: int = 30
) -> Pair:
    """A certificate for `host` that `by` signed; of no `days` it has expired."""
    pair = Pair(directory / f"{name}.pem", directory / f"{name}.key")
    request = directory / f"{name}.csr"
    _openssl("req", *_KEY, "-keyout", pair.key, "-out", request, "-subj", f"/CN={name}",
             "-addext", f"subjectAltName=DNS:{host}")  # fmt: skip
    _openssl("x509", "-req", "-in", request, "-CA", by.certificate, "-CAkey", by.key,
             "-CAcreateserial", "-copy_extensions", "copy", "-days", str(days),
             "-out", pair.certificate)  # fmt: skip
    return pair
