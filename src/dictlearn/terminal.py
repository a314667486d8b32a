"""Terminals and logs that cannot show every character: latin-1, cp1252, ASCII."""

from __future__ import annotations

import codecs
import sys

INSTEAD = {
    "\u2212": "-",  # minus
    "\u2013": "-",
    "\u2014": "-",
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": '"',
    "\u201d": '"',
    "\u2026": "...",
    "\u2022": "*",
    "\u00d7": "x",
    "\u00b7": ".",
    "\u00a0": " ",
    "\u23ce": "|",
    "\u2192": "->",
    "\u2190": "<-",
}
BOXES = range(0x2500, 0x25A0)  # frames and bars


def show_what_can_be_shown() -> None:
    """From here on a character that stdout or stderr has no sign for is written as one like it."""
    codecs.register_error("dictlearn.instead", _instead)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a test's, or a notebook's, takes everything
            reconfigure(errors="dictlearn.instead")


def _instead(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = error.object[error.start : error.end]
    return "".join(map(_sign, wrong)), error.end


def _sign(character: str) -> str:
    if ord(character) in BOXES:
        return "|" if character in "│┃║" else "-" if character in "─━═╌" else "+"
    return INSTEAD.get(character, "?")
