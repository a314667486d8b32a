"""explainer=lexical: the shortest rule over token and left context that predicts a feature's firing.

It needs no language model. A rule is searched on the "explain" documents and scored on every token of
the "score" documents: nothing is balanced or left out, so that precision is that on plain text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import final

import numpy as np
from numpy.typing import NDArray

from dictlearn.explain.predicates import Predicates, predicates
from dictlearn.explain.protocol import Explained, Explainer, Feature, Keep, Material
from dictlearn.explain.rules import Rule, RuleFinder, Search, holds
from dictlearn.explain.sample import Firings, Index
from dictlearn.explain.scores import Confusion, derangement, rounded
from dictlearn.explain.wording import in_context, sentence
from dictlearn.ranges import Count, NonNegative
from dictlearn.store.explanations import Explanation, Failure
from dictlearn.types import NamedProgress
from dictlearn.words import counted

FAILURES = 3  # shown of each kind


@final
class Lexical(Explainer):
    """Searches for a rule per feature; the arguments are those of `rules.Search`."""

    name = "lexical"

    def __init__(
        self,
        terms: Count = 3,
        literals: Count = 3,
        beam: Count = 3,
        f1_weight: NonNegative = 0.5,
        term_cost: NonNegative = 0.03,
        literal_cost: NonNegative = 0.02,
        value_cost: NonNegative = 0.005,
    ):
        self.search = Search(
            terms=terms,
            literals=literals,
            beam=beam,
            f1_weight=f1_weight,
            term_cost=term_cost,
            literal_cost=literal_cost,
            value_cost=value_cost,
        )

    def explain(
        self, material: Material, features: Sequence[Feature], progress: NamedProgress, keep: Keep
    ) -> Explained:
        sample = material.sample
        progress("reading the text", 0, 1)
        vocabulary = predicates(sample.tokens_WP, sample.starts_WP, sample.kept_WP, material.pieces)
        finder = RuleFinder(vocabulary, np.flatnonzero(~sample.to_score_N), self.search)
        scorer = _Scorer(vocabulary, np.flatnonzero(sample.to_score_N))

        def search(what: str, firings: Firings, features: Sequence[Feature]) -> list[Rule]:
            rules = []
            for done, feature in enumerate(features):
                progress(what, done, len(features))
                rules.append(finder.find(firings.of(*feature)[0]))
            return rules

        rules = search("searching for rules", material.firings, features)
        predictions = [scorer.predicted(rule) for rule in rules]
        shuffled = [
            scorer.confusion(predictions[other], material.firings.of(*feature)[0])
            for feature, other in zip(
                features, derangement(len(features), material.seed), strict=True
            )
            if len(features) > 1
        ]
        untrained = material.drawn_untrained(material.baseline_features)
        random_rules = search("rules for a random dictionary", material.untrained, untrained)
        random = [
            scorer.confusion(scorer.predicted(rule), material.untrained.of(*feature)[0])
            for rule, feature in zip(random_rules, untrained, strict=True)
        ]
        baselines = {
            "shuffled": [counts.balanced_accuracy for counts in shuffled],
            "random_dictionary": [counts.balanced_accuracy for counts in random],
        }
        means = {name: round(float(np.mean(b)), 4) for name, b in baselines.items() if b}
        explanations = [
            self._explanation(material, scorer, feature, rule, predicted, means)
            for feature, rule, predicted in zip(features, rules, predictions, strict=True)
        ]
        figures = {"predicates": len(vocabulary), "lengths": _lengths(rules)}
        return Explained(explanations, baselines, figures)

    def _explanation(
        self,
        material: Material,
        scorer: _Scorer,
        feature: Feature,
        rule: Rule,
        predicted: NDArray[np.uint8],
        baselines: Mapping[str, float],
    ) -> Explanation:
        counts = scorer.confusion(predicted, material.firings.of(*feature)[0])
        accurate = counts.balanced_accuracy >= material.threshold
        return Explanation(
            *feature,
            text=sentence(rule, scorer.predicates),
            explainer=self.name,
            prompt_hash=self._fingerprint(),
            scores=rounded(counts.figures()),
            baselines=baselines,
            n_examples=counts.tp + counts.fn,
            reliable=bool(rule) and accurate and counts.precision >= material.precision,
            failing=_failing(material, scorer, predicted, feature),
        )

    def estimate(self, material: Material, features: Sequence[Feature]) -> str:
        return f"{counted(len(features), 'feature')}: no language model is asked, nothing to pay"

    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self.search)).encode()).hexdigest()[:16]


class _Scorer:
    """Compares rules with firings on the "score" tokens."""

    def __init__(self, predicates: Predicates, tokens: Index):
        self.predicates, self.tokens = predicates, tokens
        self._index = np.full(len(predicates.table_NC), -1)
        self._index[tokens] = np.arange(len(tokens))

    def predicted(self, rule: Rule) -> NDArray[np.uint8]:
        """Marks the tokens on which the rule holds, as bits."""
        return np.packbits(holds(self.predicates, rule, self.tokens))

    def unpacked(self, predicted: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return np.unpackbits(predicted, count=len(self.tokens)).view(bool)

    def indices(self, tokens: Index) -> Index:
        """Indices of tokens among the scored ones; -1 for others."""
        return self._index[tokens]

    def fired(self, tokens: Index) -> NDArray[np.bool_]:
        indices = self.indices(tokens)
        fired = np.zeros(len(self.tokens), bool)
        fired[indices[indices >= 0]] = True
        return fired

    def confusion(self, bits: NDArray[np.uint8], tokens: Index) -> Confusion:
        predicted, fired = self.unpacked(bits), self.fired(tokens)
        tp = int((predicted & fired).sum())
        fp, fn = int(predicted.sum()) - tp, int(fired.sum()) - tp
        return Confusion(tp, fp, fn, len(fired) - tp - fp - fn)


def _failing(
    material: Material, scorer: _Scorer, bits: NDArray[np.uint8], feature: Feature
) -> tuple[Failure, ...]:
    """The strongest firings that the rule misses, and evenly spread silent tokens on which it holds."""
    tokens, values = material.firings.of(*feature)
    predicted = scorer.unpacked(bits)
    fired = scorer.fired(tokens)
    strength = np.zeros(len(fired))
    indices = scorer.indices(tokens)
    strength[indices[indices >= 0]] = values[indices >= 0]
    missed = np.flatnonzero(fired & ~predicted)
    missed = missed[np.argsort(-strength[missed], kind="stable")][:FAILURES]
    wrong = np.flatnonzero(predicted & ~fired)
    wrong = wrong[:: -(-len(wrong) // FAILURES) or 1][:FAILURES]
    failures = [(i, True) for i in missed] + [(i, False) for i in wrong]
    return tuple(
        Failure(_context(material, int(scorer.tokens[i])), fired=fires, predicted=not fires)
        for i, fires in failures
    )


def _context(material: Material, token: int) -> str:
    window, position = divmod(
        int(material.sample.places_N[token]), material.sample.tokens_WP.shape[1]
    )
    pieces = [material.pieces[int(i)] for i in material.sample.tokens_WP[window]]
    return in_context(pieces, position)


def _lengths(rules: Sequence[Rule]) -> dict[str, float]:
    """Mean numbers of terms and literals of the rules."""
    terms = [len(rule) for rule in rules] or [0]
    literals = [sum(map(len, rule)) for rule in rules] or [0]
    return {"terms": float(np.mean(terms)), "literals": float(np.mean(literals))}
