"""Articles and plurals in messages. This file does not import torch."""

from __future__ import annotations

BY_LETTERS = ("sae",)  # spoken letter by letter, and the first letter's name begins with a vowel


def a(noun: str) -> str:
    """`noun` behind its article: a list, an int, an sae."""
    return f"an {noun}" if noun[:1].lower() in tuple("aeio") or noun in BY_LETTERS else f"a {noun}"


def counted(n: int, noun: str, several: str | None = None) -> str:
    """`1 document`, `2,048 documents`; `several` is the plural where it is not the noun with an s."""
    return f"{n:,} {noun if n == 1 else several or noun + 's'}"
