"""The token that a control call must bear: where it comes from, and what is one.

Both sides read it here, the policy server to check and the command line to send it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trimtab.config import Policy
from trimtab.errors import ConfigError

__all__ = ["VARIABLE", "checked", "read_file", "token"]

# Where the command line looks when it has no configuration file to read.
VARIABLE: Final = "TRIMTAB_TOKEN"

# 16 characters of base64 are 96 bits: not to be guessed over HTTP. What is longer than this is no
# token but the wrong file.
_TOKEN: Final = re.compile(r"[!-~]{16,512}\Z")

_MAKE: Final = "(umask 077; head -c 24 /dev/urandom | base64 > {})"


def token(policy: Policy, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token that [policy] names; None when it names none. Raises ConfigError, which never
    repeats what it found."""
    if policy.token_file is not None:
        return read_file(policy.token_file, "token_file in [policy]")
    if policy.token_variable is not None:
        name = policy.token_variable
        return checked(
            environment.get(name, ""), f"token_variable in [policy]: the variable {name}"
        )
    return None


def read_file(path: Path, what: str) -> str:
    """The token in a file; `what` names where the path came from. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = file.read(1024)
    except OSError as error:
        raise ConfigError(
            f"{what} is {str(path)!r}: {error.strerror}; make one: {_MAKE.format(path)}"
        ) from None
    return checked(raw.decode("ascii", "replace").strip(), f"{what}, {str(path)!r}")


def checked(text: str, what: str) -> str:
    """`text` if it is a token. Raises ConfigError, which names `what`."""
    if not _TOKEN.match(text):
        raise ConfigError(
            f"{what} holds no token: it must be 16 to 512 printable ASCII characters without "
            f"spaces; make one: {_MAKE.format('FILE')}"
        )
    return text
