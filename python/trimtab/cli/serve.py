"""`trimtab serve`: run the policy server alone, in the foreground until interrupted."""

import argparse

from trimtab import config

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--config", default="trimtab.toml", metavar="FILE", help="the TOML file (%(default)s)"
    )
    parser.add_argument(
        "--log-level",
        choices=["debug", "info", "warning", "error"],
        default="info",
        help="log from this level on, to standard error (%(default)s)",
    )
    parser.add_argument(
        "--log-format",
        choices=["text", "json"],
        help="instead of log_format in [policy]: lines for people, or a JSON object a line",
    )
    parser.epilog = (
        "SIGINT (Ctrl-C) or SIGTERM answers the calls under way, saves what was learned and ends;\n"
        "a second one ends at once. SIGHUP checks the file and puts it to use, or keeps the old\n"
        "configuration when it is wrong."
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve; give 130 or 143 after a signal."""
    # Checked before the heavy imports, so that a typo in the file is told at once.
    checked = config.load(arguments.config)
    from trimtab import daemon, logs

    logs.to_stderr(arguments.log_level, arguments.log_format or checked.policy.log_format)
    return daemon.run(checked)
