"""Trimtab: learned, deadline-aware load balancing for open-source NGINX."""

from importlib.metadata import PackageNotFoundError, version

__all__ = ["__version__"]

try:
    __version__ = version("trimtab")
except PackageNotFoundError:  # run from a tree that was never installed
    __version__ = "0+unknown"
