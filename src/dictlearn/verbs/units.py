"""Numbers for a reader: three digits and a prefix."""

from __future__ import annotations


def as_bytes(n: float) -> str:
    return f"{si(n)}B"


def si(n: float) -> str:
    """A number with a prefix, such as "1.23 G"."""
    prefixes = ["", "k", "M", "G", "T", "P", "E", "Z"]
    while n >= 999.5 and len(prefixes) > 1:
        n /= 1000
        del prefixes[0]
    return f"{n:.3g} {prefixes[0]}"
