"""The exceptions that Trimtab raises on purpose.

Each message says what failed, on what, and what mends it.
"""

__all__ = ["ConfigError", "DependencyError", "SourceError", "StateError", "TrimtabError"]


class TrimtabError(Exception):
    """Anything that a user can do something about; the CLI prints it without a traceback."""

    exit_status = 1


class ConfigError(TrimtabError):
    """The configuration or an argument is wrong. Nothing has been started."""

    exit_status = 2


class DependencyError(TrimtabError):
    """A program, module or package is missing. The message names the command that installs it."""

    exit_status = 3


class SourceError(TrimtabError):
    """Statistics could not be read or made no sense."""


class StateError(TrimtabError):
    """A saved state could not be read or written, or failed its check."""
