"""Command lines of tests: a test's own settings in the place of those that all in its file share."""

from __future__ import annotations


def settled(*overrides: str) -> list[str]:
    """Of several overrides of one key the last: on a command line, two of them are refused."""
    return list({text.partition("=")[0].lstrip("+~"): text for text in overrides}.values())
