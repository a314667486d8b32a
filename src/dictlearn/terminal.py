"""Terminals and logs that cannot show every character: latin-1, cp1252, ASCII."""

from __future__ import annotations

import codecs
import re
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
# Bytes of a path that are no characters here, as Python holds them; repr() writes them out.
BYTES = re.compile(r"[\udc80-\udcff]+|(?:\\udc[89a-f][0-9a-f])+")
BOXES = range(0x2500, 0x25A0)  # frames and bars


def show_what_can_be_shown() -> None:
    """From here on a character that stdout or stderr has no sign for is written as one like it."""
    codecs.register_error("dictlearn.instead", _instead)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a test's, or a notebook's, takes everything
            reconfigure(errors="dictlearn.instead")


def decoded(text: str) -> str:
    """`text` with the bytes in it that had no encoding read as UTF-8; `\\xe9` where they are none."""
    return BYTES.sub(_read, text)


def _read(found: re.Match[str]) -> str:
    held = re.sub(r"\\u(dc..)", lambda one: chr(int(one[1], 16)), found[0])
    return held.encode("ascii", "surrogateescape").decode("utf-8", "backslashreplace")


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = decoded(error.object[error.start : error.end])
    shown = "".join(_sign(c, error.encoding) for c in wrong)
    return (shown.encode() if error.encoding == "utf-8" else shown), error.end


def _sign(character: str, encoding: str) -> str:
    """`character` if it can be shown; another for one of a line or a table, an escape for a letter."""
    room = {"utf-8": 0x110000, "latin-1": 0x100, "ascii": 0x80}.get(encoding, 0)
    if character.isprintable() and ord(character) < room:  # it was bytes before
        return character
    if character.isalnum() or not (character.isprintable() or character in INSTEAD):
        return character.encode("unicode_escape").decode()  # names are told apart
    if ord(character) in BOXES:
        return "|" if character in "│┃║" else "-" if character in "─━═╌" else "+"
    return INSTEAD.get(character, "?")
