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
# Bytes of a path that could not be decoded, as Python's surrogates or as repr() writes these.
BYTES = re.compile(r"[\udc80-\udcff]+|(?:\\udc[89a-f][0-9a-f])+")
BOXES = range(0x2500, 0x25A0)  # frames and bars


def show_what_can_be_shown() -> None:
    """Makes stdout and stderr write a similar character for one that they cannot encode."""
    codecs.register_error("dictlearn.instead", _instead)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # a test's or a notebook's stream takes everything
            reconfigure(errors="dictlearn.instead")


def decoded(text: str) -> str:
    """`text` with its undecoded bytes read as UTF-8, or as `\\xe9` if they are not UTF-8."""
    return BYTES.sub(_read, text)


def _read(match: re.Match[str]) -> str:
    held = re.sub(r"\\u(dc..)", lambda code: chr(int(code[1], 16)), match[0])
    return held.encode("ascii", "surrogateescape").decode("utf-8", "backslashreplace")


def _instead(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    wrong = decoded(error.object[error.start : error.end])
    shown = "".join(_sign(c, error.encoding) for c in wrong)
    return (shown.encode() if error.encoding == "utf-8" else shown), error.end


def _sign(character: str, encoding: str) -> str:
    """`character` if it can be encoded; else a similar sign, or an escape for a letter."""
    room = {"utf-8": 0x110000, "latin-1": 0x100, "ascii": 0x80}.get(encoding, 0)
    if character.isprintable() and ord(character) < room:  # decoded from bytes
        return character
    if character.isalnum() or not (character.isprintable() or character in INSTEAD):
        return character.encode("unicode_escape").decode()  # names are told apart
    if ord(character) in BOXES:
        return "|" if character in "│┃║" else "-" if character in "─━═╌" else "+"
    return INSTEAD.get(character, "?")
