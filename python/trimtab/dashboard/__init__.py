"""The dashboard: one page, its style and script beside this file, put together when asked for.

No build step, nothing from other hosts. The Content-Security-Policy names the hashes of the style
and the script, so nothing else runs on the page, whatever a name or a reason contains.
"""

import base64
import hashlib
from importlib import resources
from typing import Final

__all__ = ["page"]


_SCRIPTS: Final = ("chart.js", "orders.js", "page.js")
_STYLES: Final = ("page.css",)


def page() -> tuple[bytes, str]:
    """The page, and the Content-Security-Policy to send with it."""
    here = resources.files(__name__)
    html = here.joinpath("page.html").read_text(encoding="utf-8")
    hashes: dict[str, str] = {}
    for name in (*_STYLES, *_SCRIPTS):
        text = here.joinpath(name).read_text(encoding="utf-8")
        html = html.replace(f"/* {name} */", text)
        hashes[name] = _hash(text)
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "connect-src 'self'; img-src data:; "
        f"script-src {' '.join(hashes[n] for n in _SCRIPTS)}; "
        f"style-src {' '.join(hashes[n] for n in _STYLES)}"
    )
    return html.encode(), policy


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
