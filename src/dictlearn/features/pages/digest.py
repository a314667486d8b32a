"""summary.json beside the site: counts and a few features with examples, for the run's report.

{"format": 1, "features": 3072, "tokens": ..., "documents": ...,
 "counts": {"described", "unreliable", "undescribed", "dead"},   they add up to the features
 "examples": [{"name", "address", "description", "reliable", "score", "density",
               "contexts": [[before, the token that fires, after, activation], ...]}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, final
from urllib.parse import quote

from dictlearn.pages.record import Pieces, main_score, short
from dictlearn.store.explanations import Explanation
from dictlearn.store.features import FeatureStore
from dictlearn.store.records import Example, Feature

FILE, FORMAT = "summary.json", 1
SHOWN, CONTEXTS = 6, 3  # features, and examples of each
BEFORE, AFTER = 10, 8  # tokens of an example around the one that fires
DENSE = 0.05  # share of tokens: features that fire more often make poor examples


@final
class Digest:
    """Counts features one by one and chooses some as examples."""

    def __init__(self, store: FeatureStore):
        self._store = store
        self._counts = dict.fromkeys(("described", "unreliable", "undescribed", "dead"), 0)
        self._described: list[tuple[float, int, int]] = []  # -score, source, index
        self._others: list[tuple[float, int, int]] = []  # density, source, index

    def add(self, feature: Feature, explanation: Explanation | None) -> None:
        described = explanation if explanation is not None and explanation.text else None
        key = (feature.source, feature.index)
        if feature.dead:
            self._counts["dead"] += 1
        elif described is None:
            self._counts["undescribed"] += 1
        else:
            self._counts["described" if described.reliable else "unreliable"] += 1
            if described.reliable:
                score = main_score(described)
                self._described.append((-(0.0 if score is None else score[1]), *key))
        if not feature.dead and feature.density < DENSE:
            self._others.append((feature.density, *key))

    def to_json(
        self, explanations: Mapping[tuple[int, int], Explanation], pieces: Pieces
    ) -> dict[str, Any]:
        info = self._store.info
        return {
            "format": FORMAT,
            "dictionary": info.dictionary_sha256,
            "features": len(self._store),
            "tokens": info.tokens,
            "documents": info.documents,
            "counts": self._counts,
            "examples": [self._example(s, i, explanations, pieces) for s, i in self._chosen()],
        }

    def _chosen(self) -> list[tuple[int, int]]:
        """The features with the best descriptions; if these are few, also others, frequent to rare."""
        best = [(source, index) for _, source, index in sorted(self._described)[:SHOWN]]
        others = [(s, i) for _, s, i in sorted(self._others, reverse=True) if (s, i) not in best]
        more = min(SHOWN - len(best), len(others))
        return best + [others[len(others) * n // more] for n in range(more)]

    def _example(
        self,
        source: int,
        index: int,
        explanations: Mapping[tuple[int, int], Explanation],
        pieces: Pieces,
    ) -> dict[str, Any]:
        feature = self._store.feature(source, index)
        explanation = explanations.get((source, index))
        score = None if explanation is None else main_score(explanation)
        name = self._store.name(source, index)
        return {
            "name": name,
            "address": f"#{quote(name, safe='/:')}",
            "description": "" if explanation is None else _storable(explanation.text),
            "reliable": explanation is not None and explanation.reliable,
            "score": None if score is None else short(score[1]),
            "density": short(feature.density, 4),
            "contexts": [_context(example, pieces) for example in feature.top[:CONTEXTS]],
        }


def _context(example: Example, pieces: Pieces) -> list[Any]:
    low, end = max(example.peak - BEFORE, 0), example.peak + AFTER + 1
    text = pieces.of(example.tokens)
    parts = [text[token] for token in example.tokens[low:end]]
    peak = example.peak - low
    around = ("".join(parts[:peak]), parts[peak], "".join(parts[peak + 1 :]))
    return [*map(_storable, around), short(example.activation)]


def _storable(text: str) -> str:
    """Replaces halves of surrogate pairs, which a model may write and UTF-8 can't hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def is_summary(data: bytes) -> bool:
    """Whether a file's content is such a summary."""
    summary = json.loads(data)
    keys = {"format", "features", "counts", "examples"}
    return isinstance(summary, dict) and keys <= summary.keys()
