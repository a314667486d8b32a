"""Finds the surroundings of each token: line, word, brackets, strings and comments before it.

All text is read the same way, code or prose. A quote right after a letter is an apostrophe, unless
it closes an open string; a string of one quote ends with its line.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

OPENING, CLOSING = "([{", ")]}"
WORD = re.compile(r"\w+")
PREFIXES = frozenset(["r", "b", "f", "u", "rb", "br", "fr", "rf"])  # prefixes of Python's strings


class Surroundings(NamedTuple):
    """Surroundings of one token at its first character that is no white space.

    A token of white space alone has those at its start. `word` includes the token's own letters.
    """

    inside: str = "code"  # code, string, docstring (three quotes) or comment
    bracket: str = ""  # innermost open bracket
    depth: int = 0  # open brackets
    called: str = ""  # the word right before the innermost open bracket
    commas: int = 0  # since that bracket
    indent: int = 0  # spaces before the line's first character
    on_line: int = 0  # tokens before this one on its line, white space not counted
    first: str = ""  # the line's first word or sign, if it is before the token
    above: str = ""  # first word or sign of the last line above that isn't empty
    blank_above: bool = False  # whether the line above is empty
    word: str = ""  # the token's word, up to the token's end
    pieces: int = 0  # tokens of that word before this one
    before: str = ""  # the last whole word before that word
    between: str = ""  # up to four characters between the two words


@dataclass(slots=True)
class _State:
    quote: str = ""  # quote that closes the open string; "" outside strings
    escaped: bool = False
    comment: bool = False
    brackets: list[tuple[str, str, int]] = field(default_factory=list)  # sign, called, commas
    line: str = ""
    indent: int = 0
    on_line: int = 0
    above: str = ""
    blank_above: bool = False
    word: str = ""
    pieces: int = 0  # tokens of the word so far
    before: str = ""
    between: str = ""


def surroundings(pieces: Sequence[str], starts: Sequence[bool]) -> list[Surroundings]:
    """Surroundings of every token of a window, whose texts are `pieces`.

    `starts` marks the first tokens of documents, at which the state is reset.
    """
    state, tokens = _State(), []
    for piece, start in zip(pieces, starts, strict=True):
        if start:
            state = _State()
        body = piece.lstrip()
        if body:
            _read(state, piece[: len(piece) - len(body)])
        own = WORD.match(body)
        token = _token(state, own.group() if own else "")
        tokens.append(token)
        state.on_line += bool(body)
        _read(state, body or piece)
        state.pieces = (state.pieces + 1 if state.word == token.word else 1) if state.word else 0
    return tokens


def _token(state: _State, own: str) -> Surroundings:
    """Surroundings of a token that begins with the letters `own`."""
    after_word = state.word and not own
    sign, called, commas = state.brackets[-1] if state.brackets else ("", "", 0)
    string = "docstring" if len(state.quote) == 3 else "string"
    return Surroundings(
        inside=string if state.quote else "comment" if state.comment else "code",
        bracket=sign,
        depth=len(state.brackets),
        called=called,
        commas=commas,
        indent=state.indent,
        on_line=state.on_line,
        first=_first(state.line),
        above=state.above,
        blank_above=state.blank_above,
        word=state.word + own if own else "",
        pieces=state.pieces if own else 0,
        before=state.word if after_word else state.before,
        between="" if after_word else state.between,
    )


def _read(state: _State, text: str) -> None:
    for char in text:
        if char == "\n":
            _end_line(state)
            continue
        if char in " \t" and not state.line.strip():
            state.indent += 1 if char == " " else 4
        _read_sign(state, char)
        if char.isalnum() or char == "_":
            state.word += char
        else:
            _end_word(state)
            state.between = (state.between + char)[-4:]
        state.line += char


def _end_word(state: _State) -> None:
    if state.word:
        state.before, state.between = state.word, ""
        state.word, state.pieces = "", 0


def _end_line(state: _State) -> None:
    _end_word(state)
    state.between = (state.between.rstrip(" ") + "\n")[-4:]
    state.blank_above = not state.line.strip()
    state.above = _first(state.line) or state.above
    state.quote = state.quote if len(state.quote) == 3 else ""
    state.line, state.indent, state.on_line = "", 0, 0
    state.comment = state.escaped = False


def _read_sign(state: _State, char: str) -> None:
    if state.comment:
        return
    if state.quote:
        if state.escaped or char == "\\":
            state.escaped = not state.escaped
        elif (state.line + char).endswith(state.quote):
            state.quote = ""
    elif char in "'\"":
        if state.line.endswith(char * 2):  # a third quote opens a docstring
            state.quote = char * 3
        elif not state.word or state.word.lower() in PREFIXES:
            state.quote = char
    elif char == "#":
        state.comment = True
    elif char in OPENING:
        called = state.word or ("" if state.between else state.before)
        state.brackets.append((char, called, 0))
    elif char in CLOSING and state.brackets:
        state.brackets.pop()
    elif char == "," and state.brackets:
        sign, called, commas = state.brackets[-1]
        state.brackets[-1] = (sign, called, commas + 1)


def _first(line: str) -> str:
    """The line's first word, or its first sign."""
    stripped = line.lstrip()
    word = WORD.match(stripped)
    return word.group() if word else stripped[:1]
