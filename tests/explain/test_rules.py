"""The search finds what was planted, in words, and nothing where there is nothing."""

from __future__ import annotations

import numpy as np
import pytest

from dictlearn.explain.predicates import SLOTS, predicates
from dictlearn.explain.rules import Literal, RuleFinder, Search, holds
from dictlearn.explain.wording import either, in_context, quoted, sentence

PIECES = ["", "self", " self", "(", " a", " b", " c", "\n", " def", "#", "X", " y"]
SELF, SPACED, BRACKET, A, B, HASH = 1, 2, 3, 4, 5, 9


@pytest.fixture(scope="module")
def text():
    """(token ids, predicates) of random tokens."""
    tokens = np.random.default_rng(0).integers(1, len(PIECES), (60, 100))
    nothing = np.zeros(tokens.shape, bool)
    return tokens.ravel(), predicates(tokens, nothing, ~nothing, PIECES)


def found(text, fires, **search):
    _, known = text
    everywhere = np.arange(len(known.table_NC))
    rule = RuleFinder(known, everywhere, Search(**search)).find(np.flatnonzero(fires))
    return sentence(rule, known), (holds(known, rule, everywhere) == fires).mean()


def behind(tokens, first):
    return np.r_[False, tokens[:-1] == first] & (np.arange(len(tokens)) % 100 > 0)


def test_a_token(text):
    assert found(text, text[0] == SELF) == ("the token `self`", 1.0)


def test_a_token_behind_another(text):
    tokens, _ = text
    fires = (tokens == A) & behind(tokens, BRACKET)
    assert found(text, fires)[0].startswith("the token ` a`, right after `(`")


def test_several_tokens_are_one_literal(text):
    said, right = found(text, np.isin(text[0], [A, B]))
    assert said in ("the token ` a` or ` b`", "the token ` b` or ` a`") and right == 1


def test_one_thing_or_another(text):
    tokens, _ = text
    said, right = found(text, (tokens == SELF) | behind(tokens, HASH))
    assert " or " in said and right == 1


def test_noise_gets_no_long_rule(text):
    fires = np.random.default_rng(1).random(len(text[0])) < 0.01
    _, known = text
    learned, others = np.arange(0, 6000, 2), np.arange(1, 6000, 2)
    rule = RuleFinder(known, learned, Search()).find(np.flatnonzero(fires))
    said = holds(known, rule, others)
    assert said[fires[others]].mean() - said[~fires[others]].mean() < 0.2


def test_only_tokens_to_learn_from_count(text):
    tokens, known = text
    learned = np.arange(3000)
    fires = np.where(np.arange(6000) < 3000, tokens == A, tokens == B)
    rule = RuleFinder(known, learned, Search()).find(np.flatnonzero(fires))
    assert sentence(rule, known) == "the token ` a`"


def test_too_few_firings_give_no_rule(text):
    assert found(text, np.arange(6000) < 3)[0] == ""


def test_length_must_pay(text):
    tokens, _ = text
    fires = (tokens == A) & ~behind(tokens, HASH)
    assert found(text, fires, literal_cost=0.2)[0] == "the token ` a`"


def test_a_rule_without_terms_holds_nowhere(text):
    assert not holds(text[1], (), np.arange(10)).any()
    slot = [s.name for s in SLOTS].index("token")
    assert not holds(text[1], ((Literal(slot, (10**4 % len(text[1]),)),),), np.arange(0)).any()


def test_words_for_values():
    assert either(["a"]) == "a" and either(["a", "b", "c"]) == "a, b or c"
    assert quoted(" x\n") == "` x\\n`" and quoted("`") == "`` ` ``"
    assert quoted("\n    ") == "a line break and 4 spaces" and quoted(" ") == "a space"
    assert quoted("\n\n") == "2 line breaks" and quoted("\t") == "a white character"
    assert in_context(["a", "b", "c", "d"], 1, before=1, after=1) == "a<<b>>c"
