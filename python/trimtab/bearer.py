"""The tokens that control calls and balancers must bear: where they come from, and what is one.

Both sides read them here, the policy server to check, and the command line and the renderer of
nginx's configuration to send them.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trimtab.config import Policy
from trimtab.errors import ConfigError

__all__ = ["VARIABLE", "balancer_token", "checked", "read_file", "token"]

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


def balancer_token(policy: Policy) -> str | None:
    """The token of balancers' calls that [policy] names; None when it names none.

    Raises ConfigError; also for a '$', which nginx would take for a variable.
    """
    if policy.balancer_token_file is None:
        return None
    what = "balancer_token_file in [policy]"
    found = read_file(policy.balancer_token_file, what)
    if "$" in found:
        raise ConfigError(
            f"{what}, {str(policy.balancer_token_file)!r}: the token has a '$', which nginx would "
            f"take for a variable; make another: {_MAKE.format(policy.balancer_token_file)}"
        )
    return found


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
