"""What nginx's variables may become where a request is passed on, as far as the text tells.

Works on directives as crossplane parses them. What only a request decides stays a `$`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["expand", "target_of", "variables"]

_MOST_LOOPS: Final = 8  # `set $a $b` may nest this deep; deeper is a loop
# A text of several variables with many values each; whoever has more is told that it is not known.
_MOST_TEXTS: Final = 10_000
# Variables that begin with a "/": the name of a group ends before them.
_PATH: Final = re.compile(r"/|\$\{?(?:request_uri|document_uri|uri)\b")


def variables(
    block: Sequence[Mapping[str, Any]], outer: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    """The variables that `set`, `map`, `geo` and `split_clients` make here, with all values."""
    known = dict(outer)
    for directive in block:
        kind, arguments = directive["directive"], directive["args"]
        if kind == "set" and len(arguments) == 2:
            known[arguments[0]] = (*known.get(arguments[0], ()), arguments[1])
        elif kind in ("map", "geo", "split_clients") and arguments:
            inner = directive.get("block", [])
            values = (d["args"][-1] for d in inner if d["args"])
            known[arguments[-1]] = tuple(dict.fromkeys(values))
        elif kind == "if":
            known = variables(directive.get("block", []), known)
    return known


def expand(text: str, known: Mapping[str, tuple[str, ...]]) -> set[str]:
    """All that a text may become; what keeps a `$` is not known."""
    found: set[str] = set()
    waiting = [(text, 0)]
    for _ in range(_MOST_TEXTS):
        if not waiting:
            return found
        one, depth = waiting.pop()
        match = re.search(r"\$\{(\w+)\}|\$(\w+)", one)
        values = known.get(f"${match[1] or match[2]}") if match else None
        if match is None or values is None or depth > _MOST_LOOPS:
            found.add(one)
        else:
            before, after = one[: match.start()], one[match.end() :]
            waiting += [(before + value + after, depth + 1) for value in values]
    return {text}


def target_of(text: str) -> tuple[str, str]:
    """Scheme (in lower case) and name or address of what proxy_pass was given."""
    scheme, colon, rest = text.partition("://")
    if not colon:
        scheme, rest = "", text
    socket = re.match(r"unix:[^:]*", rest)
    return scheme.lower(), socket[0] if socket else _PATH.split(rest, maxsplit=1)[0]
