"""summary.json beside the site: counts and a few features with examples, for the run's report.

{"format": 1, "features": 3072, "tokens": ..., "documents": ...,
 "counts": {"described", "unreliable", "undescribed", "dead"},   which add up to the features
 "examples": [{"name", "address", "description", "reliable", "score", "density",
               "contexts": [[before, the token that fires, after, activation], ...]}, ...]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, final
from urllib.parse import quote

from dictlearn.features.pages.record import Pieces, main_score, short
from dictlearn.store.explanations import Explanation
from dictlearn.store.features import FeatureStore
from dictlearn.store.records import Example, Feature

FILE, FORMAT = "summary.json", 1
SHOWN, CONTEXTS = 6, 3  # features, and examples of each
BEFORE, AFTER = 10, 8  # tokens of an example around the one that fires
DENSE = 0.05  # of tokens: what fires more often is rarely an example of anything


@final
class Digest:
    """Counts features one by one, then says what is worth showing of them."""

    def __init__(self, store: FeatureStore):
        self._store = store
        self._counts = dict.fromkeys(("described", "unreliable", "undescribed", "dead"), 0)
        self._described: list[tuple[float, int, int]] = []  # -score, source, index
        self._others: list[tuple[float, int, int]] = []  # density, source, index

    def add(self, feature: Feature, explanation: Explanation | None) -> None:
        said = explanation if explanation is not None and explanation.text else None
        place = (feature.source, feature.index)
        if feature.dead:
            self._counts["dead"] += 1
        elif said is None:
            self._counts["undescribed"] += 1
        else:
            self._counts["described" if said.reliable else "unreliable"] += 1
            if said.reliable:
                score = main_score(said)
                self._described.append((-(0.0 if score is None else score[1]), *place))
        if not feature.dead and feature.density < DENSE:
            self._others.append((feature.density, *place))

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
            "examples": [self._example(*place, explanations, pieces) for place in self._chosen()],
        }

    def _chosen(self) -> list[tuple[int, int]]:
        """The best described ones; where there are few, others from frequent to rare."""
        best = [(source, index) for _, source, index in sorted(self._described)[:SHOWN]]
        others = [(s, i) for _, s, i in sorted(self._others, reverse=True) if (s, i) not in best]
        wanted = min(SHOWN - len(best), len(others))
        return best + [others[len(others) * n // wanted] for n in range(wanted)]

    def _example(
        self,
        source: int,
        index: int,
        explanations: Mapping[tuple[int, int], Explanation],
        pieces: Pieces,
    ) -> dict[str, Any]:
        feature = self._store.feature(source, index)
        said = explanations.get((source, index))
        score = None if said is None else main_score(said)
        name = self._store.name(source, index)
        return {
            "name": name,
            "address": f"#{quote(name, safe='/:')}",
            "description": "" if said is None else _storable(said.text),
            "reliable": said is not None and said.reliable,
            "score": None if score is None else short(score[1]),
            "density": short(feature.density, 4),
            "contexts": [_context(example, pieces) for example in feature.top[:CONTEXTS]],
        }


def _context(example: Example, pieces: Pieces) -> list[Any]:
    low, end = max(example.peak - BEFORE, 0), example.peak + AFTER + 1
    text = pieces.of(example.tokens)
    parts = [text[token] for token in example.tokens[low:end]]
    at = example.peak - low
    around = ("".join(parts[:at]), parts[at], "".join(parts[at + 1 :]))
    return [*map(_storable, around), short(example.activation)]


def _storable(text: str) -> str:
    """Half a surrogate pair, which a model may write, has no UTF-8."""
    return text.encode("utf-8", "replace").decode("utf-8")


def is_summary(data: bytes) -> bool:
    """Whether a file that is there is one of ours."""
    found = json.loads(data)
    return isinstance(found, dict) and {"format", "features", "counts", "examples"} <= found.keys()
