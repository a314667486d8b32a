"""Predicates of a token and the text before it, of which rules are made.

A slot is an attribute ("the token", "the line's first word") with a set of values. Each token has at
most one value in a slot; only "recent" has up to LOOKS_BACK. As a causal model sees nothing of the
text after a token, no slot depends on it.
"""

from __future__ import annotations

import keyword
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dictlearn.explain.scanner import Surroundings, surroundings

Ids = NDArray[np.int32]

LOOKS_BACK = 8  # tokens in the slot "recent"
STARTS = (1, 2, 4, 8, 16, 32, 64, 128)  # "among the first n tokens"


class Slot(NamedTuple):
    """An attribute and its wording; `{}` stands for a value, or several joined by "or"."""

    name: str
    role: str  # head: the token itself; which: its properties; where: its surroundings
    phrase: str
    quoted: bool = False  # values are text, shown as code
    most: int = 3  # values that one literal may name


SLOTS = (
    Slot("token", "head", "the token {}", quoted=True, most=6),
    Slot("folded", "head", "{} in any case, with or without a space", quoted=True, most=6),
    Slot("kind", "head", "{}"),
    Slot("word", "which", "where the word so far is {}", quoted=True, most=6),
    Slot("form", "which", "in a word {}"),
    Slot("piece", "which", "{}"),
    Slot("space", "which", "{}"),
    Slot("length", "which", "of {}"),
    Slot("opening", "which", "starting with {}", quoted=True),
    Slot("last", "which", "ending in {}", quoted=True),
    Slot("last_two", "which", "ending in {}", quoted=True),
    Slot("last_three", "which", "ending in {}", quoted=True),
    Slot("previous", "where", "right after {}", quoted=True),
    Slot("second", "where", "two tokens after {}", quoted=True),
    Slot("previous_kind", "where", "right after {}"),
    Slot("before", "where", "after the word {}", quoted=True),
    Slot("between", "where", "with {} between it and the word before", quoted=True),
    Slot("first", "where", "on a line that starts with {}", quoted=True),
    Slot("above", "where", "below a line that starts with {}", quoted=True),
    Slot("blank_above", "where", "{}"),
    Slot("on_line", "where", "{}"),
    Slot("indent", "where", "{}"),
    Slot("inside", "where", "in {}"),
    Slot("bracket", "where", "{}"),
    Slot("depth", "where", "{}"),
    Slot("called", "where", "in the brackets of {}", quoted=True),
    Slot("commas", "where", "{} in the brackets"),
    Slot("repeated", "where", "{}"),
    Slot("pair_repeated", "where", "{}"),
    Slot(
        "recent", "where", f"with {{}} among the {LOOKS_BACK} tokens before it", quoted=True, most=1
    ),
    *(Slot(f"window_{n}", "where", "{}") for n in STARTS),
    *(Slot(f"document_{n}", "where", "{}") for n in STARTS),
)


@dataclass(frozen=True, eq=False)
class Predicates:
    """The predicates that hold for N tokens. Id 0 is none; a slot's ids are consecutive."""

    table_NC: Ids  # predicate ids, C columns
    slots: NDArray[np.int16]  # index in SLOTS of each predicate; -1 for id 0
    values: tuple[str, ...]  # value of each predicate, as in a sentence without quotes

    def __len__(self) -> int:
        return len(self.values)

    def columns(self, slot: int) -> slice:
        """The table's columns for a slot."""
        recent = _INDEX["recent"]
        if slot < recent:
            return slice(slot, slot + 1)
        if slot == recent:
            return slice(slot, slot + LOOKS_BACK)
        return slice(slot + LOOKS_BACK - 1, slot + LOOKS_BACK)


_INDEX = {slot.name: index for index, slot in enumerate(SLOTS)}


def predicates(
    tokens_WP: NDArray[np.int64],
    starts_WP: NDArray[np.bool_],
    kept_WP: NDArray[np.bool_],
    pieces: Sequence[str],
    at_least: int = 8,
) -> Predicates:
    """The predicates of the kept positions of some windows, in reading order.

    Args:
        tokens_WP: token ids.
        starts_WP: marks the first tokens of documents, special ones not counted.
        kept_WP: marks the positions that a dictionary sees.
        pieces: text of every token id.
        at_least: values that fewer tokens have get no predicate.
    """
    n_windows, n_positions = tokens_WP.shape
    around = [
        token
        for tokens, starts in zip(tokens_WP, starts_WP, strict=True)
        for token in surroundings([pieces[int(i)] for i in tokens], starts.tolist())
    ]
    kept_N = kept_WP.reshape(-1)
    by_slot: dict[str, tuple[Ids, list[str]]] = {}
    by_slot |= _of_tokens(tokens_WP, pieces)
    by_slot |= _of_surroundings(around)
    by_slot |= _of_positions(tokens_WP, starts_WP)

    columns, slots, values = [], [np.array([-1], np.int16)], [""]
    for index, slot in enumerate(SLOTS):
        codes, names = by_slot[slot.name]
        codes = codes.reshape(n_windows * n_positions, -1)[kept_N]
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        has_text = np.array([name != "" for name in names], bool)  # special tokens have none
        common = np.flatnonzero((counts >= at_least) & has_text)
        ids = np.zeros(len(names) + 1, np.int32)  # the last one is for code -1
        ids[common] = len(values) + np.arange(len(common))
        columns.append(ids[codes])
        slots.append(np.full(len(common), index, np.int16))
        values += [names[i] for i in common]
    return Predicates(np.concatenate(columns, 1), np.concatenate(slots), tuple(values))


# --- the token itself, and those right before it --------------------------------------------------


def _of_tokens(
    tokens_WP: NDArray[np.int64], pieces: Sequence[str]
) -> dict[str, tuple[Ids, list[str]]]:
    tokens = tokens_WP.astype(np.int32)
    slots: dict[str, tuple[Ids, list[str]]] = {"token": (tokens, list(pieces))}
    for name, value in _OF_PIECE.items():
        codes, names = _coded([value(piece) for piece in pieces])
        slots[name] = codes[tokens_WP], names
    slots["previous"] = _shifted(tokens, 1), list(pieces)
    slots["second"] = _shifted(tokens, 2), list(pieces)
    kinds, names = slots["kind"]
    slots["previous_kind"] = _shifted(kinds, 1), names
    recent = np.stack([_shifted(tokens, back) for back in range(1, LOOKS_BACK + 1)], -1)
    for back in range(1, LOOKS_BACK):  # repeated tokens count once
        same = (recent[..., :back] == recent[..., back, None]).any(-1)
        recent[..., back][same] = -1
    slots["recent"] = recent, list(pieces)
    return slots


def _shifted(codes_WP: Ids, back: int) -> Ids:
    shifted = np.full_like(codes_WP, -1)
    shifted[:, back:] = codes_WP[:, :-back]
    return shifted


def kind(piece: str) -> str:
    """The kind of a token, as a sentence names it."""
    text = piece.strip()
    if not text:
        return "a line break" if "\n" in piece else "white space"
    if keyword.iskeyword(text):
        return "a Python keyword"
    if text.isdigit():
        return "a number"
    if text.isalpha():
        if len(text) == 1:
            return "a single capital letter" if text.isupper() else "a single lower-case letter"
        if text.isupper():
            return "a piece in capitals"
        if text[0].isupper():
            return "a capitalised word or piece"
        return "a lower-case word or piece" if text.islower() else "a piece in mixed case"
    if text.isidentifier():
        return "a name with an underscore or digit"
    if not any(char.isalnum() for char in text):
        return "a bracket" if all(char in "()[]{}" for char in text) else "punctuation"
    return "signs and letters together"


def _length(piece: str) -> str:
    n = len(piece.strip())
    return {0: "", 1: "one character"}.get(
        n, f"{n} characters" if n < 6 else "6 or more characters"
    )


def _ending(n: int) -> Callable[[str], str]:
    return lambda piece: piece.strip()[-n:] if len(piece.strip()) > n else ""


_OF_PIECE: Mapping[str, Callable[[str], str]] = {
    "folded": lambda piece: piece.strip().lower(),
    "kind": kind,
    "space": lambda piece: (
        "with a space before it" if piece[:1] == " " else "with no space before it"
    ),
    "length": _length,
    "opening": lambda piece: piece.strip()[:1],
    "last": lambda piece: piece.strip()[-1:],
    "last_two": _ending(2),
    "last_three": _ending(3),
}


# --- its surroundings -----------------------------------------------------------------------------


def _of_surroundings(around: Sequence[Surroundings]) -> dict[str, tuple[Ids, list[str]]]:
    return {
        name: _coded([value(token) for token in around]) for name, value in _OF_SURROUNDINGS.items()
    }


def _form(token: Surroundings) -> str:
    word = token.word
    if not word:
        return ""
    if word.startswith("__"):
        return "that starts with `__`"
    if word.startswith("_"):
        return "that starts with `_`"
    if word.isdigit():
        return "of digits"
    if word.isupper() and len(word) > 1:
        return "in capitals"
    if "_" in word:
        return "with an underscore"
    if word[0].isupper():
        return "that starts with a capital"
    return "in lower case" if word.islower() else "in mixed case"


def _piece(token: Surroundings) -> str:
    if not token.word:
        return ""
    return ("that begins a word", "that is the second piece of a word", "deep inside a word")[
        min(token.pieces, 2)
    ]


def _on_line(token: Surroundings) -> str:
    names = ("first on its line", "second on its line", "third on its line")
    if token.on_line < 3:
        return names[token.on_line]
    if token.on_line < 6:
        return "fourth to sixth on its line"
    return "seventh to twelfth on its line" if token.on_line < 12 else "late on a long line"


def _indent(token: Surroundings) -> str:
    if token.indent == 0:
        return "not indented"
    steps = -(-token.indent // 4)
    return f"indented by {steps} step{'s' * (steps > 1)}" if steps < 5 else "indented deeply"


def _depth(token: Surroundings) -> str:
    names = ("outside brackets", "inside brackets", "inside two brackets")
    return names[token.depth] if token.depth < 3 else "inside three or more brackets"


def _commas(token: Surroundings) -> str:
    if not token.bracket:
        return ""
    return (
        ("before the first comma", "after the first comma")[token.commas]
        if token.commas < 2
        else ("after the second comma")
    )


_INSIDE = {
    "code": "code or plain text",
    "string": "a string",
    "docstring": "a docstring",
    "comment": "a comment",
}

_OF_SURROUNDINGS: Mapping[str, Callable[[Surroundings], str]] = {
    "word": lambda token: token.word,
    "form": _form,
    "piece": _piece,
    "before": lambda token: token.before,
    "between": lambda token: token.between,
    "first": lambda token: token.first,
    "above": lambda token: token.above,
    "blank_above": lambda token: (
        "below an empty line" if token.blank_above else "below a filled line"
    ),
    "on_line": _on_line,
    "indent": _indent,
    "inside": lambda token: _INSIDE[token.inside],
    "bracket": lambda token: f"inside `{token.bracket}`" if token.bracket else "",
    "depth": _depth,
    "called": lambda token: token.called,
    "commas": _commas,
}


# --- its position in the model's context ----------------------------------------------------------


def _of_positions(
    tokens_WP: NDArray[np.int64], starts_WP: NDArray[np.bool_]
) -> dict[str, tuple[Ids, list[str]]]:
    n_windows, n_positions = tokens_WP.shape
    position_WP = np.broadcast_to(np.arange(n_positions), tokens_WP.shape)
    last_start_WP = np.maximum.accumulate(np.where(starts_WP, position_WP, -n_positions), 1)
    since_WP = position_WP - last_start_WP  # large where the start is not in the window
    slots = {}
    for n in STARTS:
        for name, index_WP, whole in (
            (f"window_{n}", position_WP, "of what the model sees"),
            (f"document_{n}", since_WP, "of a document"),
        ):
            first = f"the first {n} tokens" if n > 1 else "the first token"
            names = [f"among {first} {whole}", f"not among {first} {whole}"]
            slots[name] = (index_WP >= n).astype(np.int32), names
    pair_WP = tokens_WP.copy()
    pair_WP[:, 1:] += tokens_WP[:, :-1] * (1 + tokens_WP.max())
    names = ["new in what the model has seen", "seen before by the model"]
    slots["repeated"] = _repeated(tokens_WP), names
    names = ["after another token than ever before", "repeating a pair of tokens from further up"]
    slots["pair_repeated"] = _repeated(pair_WP), names
    return slots


def _repeated(values_WP: NDArray[np.int64]) -> Ids:
    """1 where the same value occurs earlier in the window, else 0."""
    order_WP = values_WP.argsort(1, kind="stable")
    sorted_WP = np.take_along_axis(values_WP, order_WP, 1)
    again_WP = np.zeros(values_WP.shape, np.int32)
    again_WP[:, 1:] = sorted_WP[:, 1:] == sorted_WP[:, :-1]
    repeated_WP = np.empty_like(again_WP)
    np.put_along_axis(repeated_WP, order_WP, again_WP, 1)
    return repeated_WP


def _coded(texts: Sequence[str]) -> tuple[Ids, list[str]]:
    """(a number for each distinct text, -1 for an empty one; the texts by number)."""
    names: dict[str, int] = {}
    codes = [names.setdefault(text, len(names)) if text else -1 for text in texts]
    return np.array(codes, np.int32), list(names)
