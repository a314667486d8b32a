"""The JSON from which the site's script makes the page of a feature.

Token ids become text here, so that the site needs no vocabulary, and consecutive silent tokens are
joined, so that most of a context takes no more bytes than its letters.
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
    """Texts of token ids, each looked up once; without a tokenizer the ids themselves."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase | None):
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def of(self, tokens: Iterable[int]) -> dict[int, str]:
        """Texts by id, of these tokens and of all earlier ones."""
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
    """A feature's record in features-*.js, which feature.js renders."""

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
            "directions": [_direction(d, pieces) for d in feature.transform.directions],
        },
        "explanation": None if explanation is None else _explanation(explanation),
    }


def spread(feature: Feature, targets: Sequence[str]) -> tuple[int, float, float] | None:
    """(number of the strongest target, its share of the norms, mean target number weighted by norms).

    None for a single target, a dead feature, or norms of 0.
    """
    norms = {targets.index(site): norm for site, norm in feature.norms.items()}
    total = sum(norms.values())
    if len(targets) < 2 or not 0 < total < math.inf or feature.dead:
        return None
    most = max(norms, key=lambda t: norms[t])
    return most, norms[most] / total, sum(t * norm for t, norm in norms.items()) / total


def main_score(explanation: Explanation) -> tuple[str, float] | None:
    """The description's main score: the first that its scorer gives."""
    return next(iter(explanation.scores.items()), None)


def summary(feature: Feature, pieces: Pieces) -> str:
    """The tokens with the strongest firings, the most frequent first, for the list of features."""
    ids = [example.tokens[example.peak] for example in feature.top]
    text = pieces.of(ids)
    peaks = Counter(_visible(text[token]) for token in ids)
    return "  ".join(text for text, _ in peaks.most_common(SUMMARY_TOKENS))


def short(value: float, digits: int = 3) -> float:
    """Rounds to the digits that a page shows, which halves the bytes."""
    return float(f"{value:.{digits}g}")


def _example(example: Example, pieces: Pieces) -> list[Any]:
    """[document, window, position, index of the peak, parts]; a part is text or [text, activation]."""
    tokens, text = example.tokens, pieces.of(example.tokens)
    active = [i for i, value in enumerate(example.activations) if value > 0 or i == example.peak]
    parts: list[Any] = []
    peak = end = 0
    for i in active:
        if i > end:
            parts.append("".join(map(text.__getitem__, tokens[end:i])))
        if i == example.peak:
            peak = len(parts)
        parts.append([text[tokens[i]], short(example.activations[i])])
        end = i + 1
    if end < len(tokens):
        parts.append("".join(map(text.__getitem__, tokens[end:])))
    return [example.document, example.window, example.start + example.peak, peak, parts]


def _tokens(scores: TokenScores, pieces: Pieces) -> list[list[Any]]:
    text = pieces.of(token for token, _ in scores)
    return [[text[token], short(value)] for token, value in scores]


def _direction(direction: Direction, pieces: Pieces) -> list[Any]:
    d = direction
    sides = (d.reads, d.reads_opposite, d.promotes, d.suppresses)
    return [short(d.strength), *(_tokens(side, pieces) for side in sides)]


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
    """Scores as pairs; names come from a file, and some would have a meaning in a script's object."""
    return [[name, short(value)] for name, value in scores.items()]


def _visible(text: str) -> str:
    """A token for the list: stripped and cut; pure whitespace is shown as signs."""
    if bare := text.strip():
        return bare[:SUMMARY_LETTERS]
    return "".join(WHITESPACE.get(letter, letter) for letter in text[:SUMMARY_SPACES])
