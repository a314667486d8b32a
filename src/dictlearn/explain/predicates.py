"""What can be said of a token from itself and the text before it: the words that rules are made of.

A slot is one thing to say ("the token", "the line's first word"), its values what it can be. Each
token has at most one value in a slot; "recent" alone has as many as it looks back. A causal model
sees nothing of the text after a token, so no slot does either.
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

LOOKS_BACK = 8  # tokens, of the slot "recent"
STARTS = (1, 2, 4, 8, 16, 32, 64, 128)  # "among the first n tokens"


class Slot(NamedTuple):
    """How a slot is spoken of. `{}` stands for its value, or for several joined by "or"."""

    name: str
    role: str  # head: what the token is; which: more of it; where: what is around it
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
    """N tokens and what is true of them. Id 0 says nothing; a slot's ids lie side by side."""

    table_NC: Ids  # predicate ids, C columns
    slots: NDArray[np.int16]  # of each predicate, its place in SLOTS; -1 of id 0
    values: tuple[str, ...]  # of each predicate, as written in a sentence without quotes

    def __len__(self) -> int:
        return len(self.values)

    def columns(self, slot: int) -> slice:
        """Where in the table the slot's ids stand."""
        recent = _INDEX["recent"]
        if slot < recent:
            return slice(slot, slot + 1)
        if slot == recent:
            return slice(slot, slot + LOOKS_BACK)
        return slice(slot + LOOKS_BACK - 1, slot + LOOKS_BACK)


_INDEX = {slot.name: place for place, slot in enumerate(SLOTS)}


def predicates(
    tokens_WP: NDArray[np.int64],
    starts_WP: NDArray[np.bool_],
    kept_WP: NDArray[np.bool_],
    pieces: Sequence[str],
    at_least: int = 8,
) -> Predicates:
    """Of the kept positions of some windows, in reading order.

    Args:
        tokens_WP: token ids.
        starts_WP: the first tokens of documents, special ones not counted.
        kept_WP: positions that a dictionary sees.
        pieces: text of every token id.
        at_least: values that fewer tokens have are not spoken of.
    """
    n_windows, n_positions = tokens_WP.shape
    seen = [
        one
        for tokens, starts in zip(tokens_WP, starts_WP, strict=True)
        for one in surroundings([pieces[int(i)] for i in tokens], starts.tolist())
    ]
    kept_N = kept_WP.reshape(-1)
    by_slot: dict[str, tuple[Ids, list[str]]] = {}
    by_slot |= _of_tokens(tokens_WP, pieces)
    by_slot |= _of_surroundings(seen)
    by_slot |= _of_places(tokens_WP, starts_WP)

    columns, slots, values = [], [np.array([-1], np.int16)], [""]
    for place, slot in enumerate(SLOTS):
        codes, names = by_slot[slot.name]
        codes = codes.reshape(n_windows * n_positions, -1)[kept_N]
        counts = np.bincount(codes[codes >= 0], minlength=len(names))
        said = np.array([name != "" for name in names], bool)  # special tokens have no text
        common = np.flatnonzero((counts >= at_least) & said)
        ids = np.zeros(len(names) + 1, np.int32)  # the last one: of code -1
        ids[common] = len(values) + np.arange(len(common))
        columns.append(ids[codes])
        slots.append(np.full(len(common), place, np.int16))
        values += [names[i] for i in common]
    return Predicates(np.concatenate(columns, 1), np.concatenate(slots), tuple(values))


# --- the token itself, and those right before it --------------------------------------------------


def _of_tokens(
    tokens_WP: NDArray[np.int64], pieces: Sequence[str]
) -> dict[str, tuple[Ids, list[str]]]:
    tokens = tokens_WP.astype(np.int32)
    found: dict[str, tuple[Ids, list[str]]] = {"token": (tokens, list(pieces))}
    for name, of_piece in _OF_PIECE.items():
        codes, names = _coded([of_piece(piece) for piece in pieces])
        found[name] = codes[tokens_WP], names
    found["previous"] = _shifted(tokens, 1), list(pieces)
    found["second"] = _shifted(tokens, 2), list(pieces)
    kinds, names = found["kind"]
    found["previous_kind"] = _shifted(kinds, 1), names
    recent = np.stack([_shifted(tokens, back) for back in range(1, LOOKS_BACK + 1)], -1)
    for back in range(1, LOOKS_BACK):  # what stands there twice counts once
        same = (recent[..., :back] == recent[..., back, None]).any(-1)
        recent[..., back][same] = -1
    found["recent"] = recent, list(pieces)
    return found


def _shifted(codes_WP: Ids, back: int) -> Ids:
    shifted = np.full_like(codes_WP, -1)
    shifted[:, back:] = codes_WP[:, :-back]
    return shifted


def kind(piece: str) -> str:
    """What sort of token, as a sentence names it."""
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


# --- what surrounds it ----------------------------------------------------------------------------


def _of_surroundings(seen: Sequence[Surroundings]) -> dict[str, tuple[Ids, list[str]]]:
    return {name: _coded([of(one) for one in seen]) for name, of in _OF_SURROUNDINGS.items()}


def _form(one: Surroundings) -> str:
    word = one.word
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


def _piece(one: Surroundings) -> str:
    if not one.word:
        return ""
    return ("that begins a word", "that is the second piece of a word", "deep inside a word")[
        min(one.pieces, 2)
    ]


def _on_line(one: Surroundings) -> str:
    names = ("first on its line", "second on its line", "third on its line")
    if one.on_line < 3:
        return names[one.on_line]
    if one.on_line < 6:
        return "fourth to sixth on its line"
    return "seventh to twelfth on its line" if one.on_line < 12 else "late on a long line"


def _indent(one: Surroundings) -> str:
    if one.indent == 0:
        return "not indented"
    steps = -(-one.indent // 4)
    return f"indented by {steps} step{'s' * (steps > 1)}" if steps < 5 else "indented deeply"


def _depth(one: Surroundings) -> str:
    names = ("outside brackets", "inside brackets", "inside two brackets")
    return names[one.depth] if one.depth < 3 else "inside three or more brackets"


def _commas(one: Surroundings) -> str:
    if not one.bracket:
        return ""
    return (
        ("before the first comma", "after the first comma")[one.commas]
        if one.commas < 2
        else ("after the second comma")
    )


_INSIDE = {
    "code": "code or plain text",
    "string": "a string",
    "docstring": "a docstring",
    "comment": "a comment",
}

_OF_SURROUNDINGS: Mapping[str, Callable[[Surroundings], str]] = {
    "word": lambda one: one.word,
    "form": _form,
    "piece": _piece,
    "before": lambda one: one.before,
    "between": lambda one: one.between,
    "first": lambda one: one.first,
    "above": lambda one: one.above,
    "blank_above": lambda one: "below an empty line" if one.blank_above else "below a filled line",
    "on_line": _on_line,
    "indent": _indent,
    "inside": lambda one: _INSIDE[one.inside],
    "bracket": lambda one: f"inside `{one.bracket}`" if one.bracket else "",
    "depth": _depth,
    "called": lambda one: one.called,
    "commas": _commas,
}


# --- where it stands in what the model sees -------------------------------------------------------


def _of_places(
    tokens_WP: NDArray[np.int64], starts_WP: NDArray[np.bool_]
) -> dict[str, tuple[Ids, list[str]]]:
    n_windows, n_positions = tokens_WP.shape
    position_WP = np.broadcast_to(np.arange(n_positions), tokens_WP.shape)
    last_start_WP = np.maximum.accumulate(np.where(starts_WP, position_WP, -n_positions), 1)
    since_WP = position_WP - last_start_WP  # large where the start is not seen
    found = {}
    for n in STARTS:
        for name, place_WP, whole in (
            (f"window_{n}", position_WP, "of what the model sees"),
            (f"document_{n}", since_WP, "of a document"),
        ):
            first = f"the first {n} tokens" if n > 1 else "the first token"
            names = [f"among {first} {whole}", f"not among {first} {whole}"]
            found[name] = (place_WP >= n).astype(np.int32), names
    pair_WP = tokens_WP.copy()
    pair_WP[:, 1:] += tokens_WP[:, :-1] * (1 + tokens_WP.max())
    names = ["new in what the model has seen", "seen before by the model"]
    found["repeated"] = _repeated(tokens_WP), names
    names = ["after another token than ever before", "repeating a pair of tokens from further up"]
    found["pair_repeated"] = _repeated(pair_WP), names
    return found


def _repeated(values_WP: NDArray[np.int64]) -> Ids:
    """1 where the same value stands earlier in the window, else 0."""
    order_WP = values_WP.argsort(1, kind="stable")
    sorted_WP = np.take_along_axis(values_WP, order_WP, 1)
    again_WP = np.zeros(values_WP.shape, np.int32)
    again_WP[:, 1:] = sorted_WP[:, 1:] == sorted_WP[:, :-1]
    found_WP = np.empty_like(again_WP)
    np.put_along_axis(found_WP, order_WP, again_WP, 1)
    return found_WP


def _coded(texts: Sequence[str]) -> tuple[Ids, list[str]]:
    """A number for each different text, -1 for an empty one; and the texts by number."""
    names: dict[str, int] = {}
    codes = [names.setdefault(text, len(names)) if text else -1 for text in texts]
    return np.array(codes, np.int32), list(names)
