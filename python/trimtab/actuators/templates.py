"""The templates, in which nothing can be written that `safe_text` has not made safe."""

import functools
from pathlib import Path

import jinja2

from trimtab import paths
from trimtab.actuators import safe_text

__all__ = ["environment", "include_line"]


@functools.cache
def environment() -> jinja2.Environment:
    """Templates whose every written value must have gone through a filter of `safe_text`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(paths.templates_directory()),
        undefined=jinja2.StrictUndefined,
        # HTML escaping would damage values; `only_safe` holds every one to a filter instead.
        autoescape=False,  # noqa: S701
        finalize=safe_text.only_safe,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(safe_text.FILTERS)
    return environment


def include_line(file: Path) -> str:
    """What makes nginx read a file. Raises ConfigError for a path that nginx cannot take."""
    return f"include {safe_text.FILTERS['quoted'](str(file))};"
