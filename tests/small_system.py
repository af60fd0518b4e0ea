"""A scenario of seconds: two servers, one three times as fast, and a short and a long class."""

from typing import Final

__all__ = ["SMALL"]

SMALL: Final = """
duration_seconds = 60
[load]
requests_per_second = 20
[[server]]
slots = 1
speed = 1
[[server]]
slots = 1
speed = 3
[[class]]
name = "short"
share = 0.7
service_seconds = 0.06
deadline_seconds = 0.12
[[class]]
name = "long"
share = 0.3
service_seconds = 0.24
deadline_seconds = 0.6
"""
