"""What the page of a feature shows, as the JSON that its script reads.

Token ids become text here, so that no vocabulary travels with the site, and tokens on which the
feature is silent are put together: most of a context costs no more than its letters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from dictlearn.store.explanations import Explanation
from dictlearn.store.records import Direction, Example, Feature, TokenScores
from dictlearn.store.text import token_text

SHOWN_FAILURES = 12
LONGEST_FAILURE = 600  # characters
SUMMARY_TOKENS, SUMMARY_LETTERS, SUMMARY_SPACES = 5, 20, 4
WHITESPACE = {"\n": "↵", "\r": "␍", "\t": "⇥", " ": "·"}  # as in site/dom.js


class Pieces:
    """Token ids as text, each looked up once. Without a tokenizer the ids themselves."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None):
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, tokens: Iterable[int]) -> dict[int, str]:
        """Text by id, of these tokens and of others."""
        if missing := list(set(tokens).difference(self._known)):
            if self._tokenizer is None:
                texts = [f"<{token}>" for token in missing]
            else:
                texts = token_text(self._tokenizer, missing)
            self._known.update(zip(missing, texts, strict=True))
        return self._known


def page_of(
    feature: Feature, explanation: Explanation | None, pieces: Pieces, n_features: int
) -> dict[str, Any]:
    """The record that features-*.js holds of one feature; feature.js says how it is shown."""

    def row(source: int, index: int) -> int:
        return source * n_features + index

    def links(others: Iterable[tuple[int, int, float]]) -> list[list[float]]:
        return [[row(source, index), short(value)] for source, index, value in others]

    return {
        "row": row(feature.source, feature.index),
        "density": short(feature.density, 4),
        "count": feature.count,
        "maximum": short(feature.maximum),
        "mean": short(feature.mean),
        "dead": feature.dead,
        "quantiles": [short(value) for value in feature.quantiles],
        "histogram": list(feature.histogram),
        "top": [_example(example, pieces) for example in feature.top],
        "intervals": [
            [_example(example, pieces) for example in drawn] for drawn in feature.by_interval
        ],
        "norms": [[site, short(norm * feature.mean)] for site, norm in feature.norms.items()],
        "writes": [
            [site, _tokens(feature.promoted[site], pieces), _tokens(suppressed, pieces)]
            for site, suppressed in feature.suppressed.items()
        ],
        "neighbours": links(feature.neighbours),
        "cofiring": links(feature.cofiring),
        "transform": None
        if feature.transform is None
        else {
            "rank": feature.transform.rank,
            "directions": [_direction(one, pieces) for one in feature.transform.directions],
        },
        "explanation": None if explanation is None else _explanation(explanation),
    }


def spread(feature: Feature, targets: Sequence[str]) -> tuple[int, float, float] | None:
    """(the target it writes most to, its share of the norms, the mean target weighted by them).

    Targets by their numbers. None where there is one alone, or nothing is written.
    """
    norms = {targets.index(site): norm for site, norm in feature.norms.items()}
    total = sum(norms.values())
    if len(targets) < 2 or not 0 < total < math.inf or feature.dead:
        return None
    most = max(norms, key=lambda t: norms[t])
    return most, norms[most] / total, sum(t * norm for t, norm in norms.items()) / total


def main_score(explanation: Explanation) -> tuple[str, float] | None:
    """The score that a description goes by: the first that its scorer names."""
    return next(iter(explanation.scores.items()), None)


def summary(feature: Feature, pieces: Pieces) -> str:
    """The tokens that it was strongest on, most frequent first: what a list shows of a feature."""
    ids = [one.tokens[one.peak] for one in feature.top]
    text = pieces.of(ids)
    peaks = Counter(_visible(text[token]) for token in ids)
    return "  ".join(text for text, _ in peaks.most_common(SUMMARY_TOKENS))


def short(value: float, digits: int = 3) -> float:
    """As many digits as a page shows, and half the bytes."""
    return float(f"{value:.{digits}g}")


def _example(example: Example, pieces: Pieces) -> list[Any]:
    """[document, window, position, place of the peak, pieces]: silent text, or [text, activation]."""
    tokens, text = example.tokens, pieces.of(example.tokens)
    apart = [i for i, value in enumerate(example.activations) if value > 0 or i == example.peak]
    parts: list[Any] = []
    peak = end = 0
    for place in apart:
        if place > end:
            parts.append("".join(map(text.__getitem__, tokens[end:place])))
        if place == example.peak:
            peak = len(parts)
        parts.append([text[tokens[place]], short(example.activations[place])])
        end = place + 1
    if end < len(tokens):
        parts.append("".join(map(text.__getitem__, tokens[end:])))
    return [example.document, example.window, example.start + example.peak, peak, parts]


def _tokens(scores: TokenScores, pieces: Pieces) -> list[list[Any]]:
    text = pieces.of(token for token, _ in scores)
    return [[text[token], short(value)] for token, value in scores]


def _direction(one: Direction, pieces: Pieces) -> list[Any]:
    sides = (one.reads, one.reads_opposite, one.promotes, one.suppresses)
    return [short(one.strength), *(_tokens(side, pieces) for side in sides)]


def _explanation(explanation: Explanation) -> dict[str, Any]:
    return {
        "text": explanation.text,
        "explainer": explanation.explainer,
        "model": explanation.model,
        "n_examples": explanation.n_examples,
        "reliable": explanation.reliable,
        "scores": _pairs(explanation.scores),
        "baselines": _pairs(explanation.baselines),
        "n_failing": len(explanation.failing),
        "failing": [
            {
                "text": failure.text[:LONGEST_FAILURE],
                "fired": failure.fired,
                "predicted": failure.predicted,
            }
            for failure in explanation.failing[:SHOWN_FAILURES]
        ],
    }


def _pairs(scores: Mapping[str, float]) -> list[list[Any]]:
    """Not an object: names come from a file, and a script's object takes some of them for its own."""
    return [[name, short(value)] for name, value in scores.items()]


def _visible(text: str) -> str:
    """A token in a list: without the space before it, and cut; whitespace alone as signs."""
    if bare := text.strip():
        return bare[:SUMMARY_LETTERS]
    return "".join(WHITESPACE.get(letter, letter) for letter in text[:SUMMARY_SPACES])
