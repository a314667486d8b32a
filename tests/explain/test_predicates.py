"""Predicates are true of a token and of what stands before it, never of what follows."""

from __future__ import annotations

import numpy as np

from dictlearn.explain.predicates import SLOTS, Predicates, predicates
from dictlearn.explain.rules import RuleFinder, Search
from dictlearn.explain.wording import sentence

PIECES = ["", "def", " f", "(", "x", ")", ":", "\n", "    ", "return", " X", " 12", "_a", "..."]


def read(tokens: np.ndarray, at_least: int = 1) -> Predicates:
    starts = np.zeros(tokens.shape, bool)
    starts[:, 1] = True
    return predicates(tokens, starts, tokens > 0, PIECES, at_least)


def windows(n: int = 6) -> np.ndarray:
    tokens = np.random.default_rng(0).integers(1, len(PIECES), (n, 40))
    tokens[:, 0] = 0
    return tokens


def said(known: Predicates, row: int) -> list[tuple[str, str]]:
    ids = known.table_NC[row]
    return sorted((SLOTS[known.slots[i]].name, known.values[i]) for i in ids if i)


def test_what_follows_a_token_changes_nothing_about_it():
    tokens = windows()
    other = tokens.copy()
    other[:, 20:] = np.random.default_rng(1).integers(1, len(PIECES), other[:, 20:].shape)
    a, b = read(tokens), read(other)
    rows = [w * 39 + p for w in range(len(tokens)) for p in range(19)]
    assert all(said(a, row) == said(b, row) for row in rows)


def test_a_token_and_what_precedes_it():
    tokens = np.array([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 7, 8, 9]])
    known = read(tokens)
    seen = dict(said(known, 9))  # " X"
    assert seen["token"] == " X" and seen["folded"] == "x" and seen["before"] == "return"
    assert seen["kind"] == "a single capital letter" and seen["space"] == "with a space before it"
    assert seen["previous"] == "return" and seen["second"] == "    " and seen["first"] == "return"
    assert seen["indent"] == "indented by 1 step" and seen["repeated"].startswith("new")
    assert seen["document_8"].startswith("not") and not seen["document_16"].startswith("not")
    again = dict(said(known, 12))  # the second "return"
    assert again["repeated"].startswith("seen") and again["pair_repeated"].startswith("repeating")
    assert {value for slot, value in said(known, 3) if slot == "recent"} == {"def", " f", "("}


def test_rare_values_are_not_spoken_of():
    tokens = windows()
    counts = np.bincount(tokens[tokens > 0], minlength=len(PIECES))
    known = read(tokens, at_least=int(np.median(counts)))
    spoken = {v for v, s in zip(known.values[1:], known.slots[1:], strict=True) if s == 0}
    wanted = {PIECES[i] for i in np.flatnonzero(counts >= np.median(counts)) if i}
    assert spoken == wanted


def test_ids_of_a_slot_lie_side_by_side_and_stand_in_its_columns():
    known = read(windows())
    assert (np.diff(known.slots) >= 0).all() and known.slots[0] == -1
    for place in range(len(SLOTS)):
        ids = known.table_NC[:, known.columns(place)]
        assert set(known.slots[np.unique(ids[ids > 0])]) <= {place}


def test_prose_without_brackets_or_second_lines_has_fewer_things_to_say():
    """Slots that no token has a value for are left out, and rules are found from the others."""
    prose = ["", " the", " cat", " sat", " on", " mat"]
    tokens = np.random.default_rng(0).integers(1, len(prose), (6, 40))
    starts = np.zeros(tokens.shape, bool)
    known = predicates(tokens, starts, ~starts, prose)
    said = {SLOTS[place].name for place in known.slots[1:]}
    assert not said & {"bracket", "called", "commas", "above"} and {"token", "previous"} <= said
    rule = RuleFinder(known, np.arange(240), Search()).find(np.flatnonzero(tokens.ravel() == 2))
    assert sentence(rule, known) == "the token ` cat`"


def test_text_of_special_tokens_alone_has_nothing_to_say():
    nothing = np.zeros((2, 8), bool)
    known = predicates(np.zeros((2, 8), int), nothing, ~nothing, [""])
    assert known.table_NC[:, : known.columns(0).stop].max() == 0
