"""explainer=lexical: the shortest rule over token and left context that predicts a feature's firing.

Needs no language model. A rule is found on the "explain" documents and scored on every token of the
"score" documents: nothing is balanced or left out, so that precision is what a reader would meet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
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

FAILURES = 3  # shown of each sort


@final
class Lexical(Explainer):
    """Args: see `rules.Search`, how far the search goes and what a rule's length costs."""

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
        for key, value in (("terms", terms), ("literals", literals), ("beam", beam)):
            if value < 1:
                raise ValueError(f"explainer.{key}={value}: want at least 1")
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
        known = predicates(sample.tokens_WP, sample.starts_WP, sample.kept_WP, material.pieces)
        finder = RuleFinder(known, np.flatnonzero(~sample.to_score_N), self.search)
        scorer = _Scorer(known, np.flatnonzero(sample.to_score_N))

        def rules_of(what: str, firings: Firings, some: Sequence[Feature]) -> list[Rule]:
            found = []
            for done, feature in enumerate(some):
                progress(what, done, len(some))
                found.append(finder.find(firings.of(*feature)[0]))
            return found

        rules = rules_of("searching for rules", material.firings, features)
        said = [scorer.said(rule) for rule in rules]
        own = [
            scorer.confusion(s, material.firings.of(*f)[0])
            for s, f in zip(said, features, strict=True)
        ]
        swapped = [
            scorer.confusion(said[other], material.firings.of(*feature)[0]).balanced_accuracy
            for feature, other in zip(
                features, derangement(len(features), material.seed), strict=True
            )
            if len(features) > 1
        ]
        untrained = self._untrained(material)
        random_rules = rules_of("rules for a random dictionary", material.untrained, untrained)
        random = [
            scorer.confusion(
                scorer.said(rule), material.untrained.of(*feature)[0]
            ).balanced_accuracy
            for rule, feature in zip(random_rules, untrained, strict=True)
        ]
        baselines = {"shuffled": swapped, "random_dictionary": random}
        means = {name: round(float(np.mean(b)), 4) for name, b in baselines.items() if b}
        settings = self._fingerprint()
        explanations = []
        for feature, rule, predicted, counts in zip(features, rules, said, own, strict=True):
            good = (
                counts.balanced_accuracy >= material.threshold
                and counts.precision >= material.precision
            )
            explanations.append(
                Explanation(
                    *feature,
                    text=sentence(rule, known),
                    explainer=self.name,
                    prompt_hash=settings,
                    scores=rounded(counts.figures()),
                    baselines=means,
                    n_examples=counts.tp + counts.fn,
                    reliable=bool(rule) and good,
                    failing=_failing(material, scorer, predicted, feature),
                )
            )
        figures = {"predicates": len(known), "lengths": _lengths(rules)}
        return Explained(explanations, baselines, figures)

    def estimate(self, material: Material, features: Sequence[Feature]) -> str:
        return f"{len(features):,} features: no language model is asked, nothing to pay"

    def _untrained(self, material: Material) -> list[Feature]:
        firings = material.untrained
        everything = [divmod(i, firings.n_features) for i in range(len(firings.starts) - 1)]
        drawn = np.random.default_rng(material.seed).permutation(len(everything))
        some = [everything[i] for i in drawn[: 4 * material.baseline_features]]
        return material.explainable(some, firings)[: material.baseline_features]

    def _fingerprint(self) -> str:
        return hashlib.sha256(json.dumps(asdict(self.search)).encode()).hexdigest()[:16]


class _Scorer:
    """Compares rules with firings on the "score" tokens."""

    def __init__(self, known: Predicates, tokens: Index):
        self.known, self.tokens = known, tokens
        self._place = np.full(len(known.table_NC), -1)
        self._place[tokens] = np.arange(len(tokens))

    def said(self, rule: Rule) -> NDArray[np.uint8]:
        """On which tokens the feature fires by the rule, as bits."""
        return np.packbits(holds(self.known, rule, self.tokens))

    def unpacked(self, said: NDArray[np.uint8]) -> NDArray[np.bool_]:
        return np.unpackbits(said, count=len(self.tokens)).view(bool)

    def fired(self, tokens: Index) -> NDArray[np.bool_]:
        places = self._place[tokens]
        found = np.zeros(len(self.tokens), bool)
        found[places[places >= 0]] = True
        return found

    def confusion(self, said: NDArray[np.uint8], tokens: Index) -> Confusion:
        predicted, fired = self.unpacked(said), self.fired(tokens)
        tp = int((predicted & fired).sum())
        fp, fn = int(predicted.sum()) - tp, int(fired.sum()) - tp
        return Confusion(tp, fp, fn, len(fired) - tp - fp - fn)


def _failing(
    material: Material, scorer: _Scorer, said: NDArray[np.uint8], feature: Feature
) -> tuple[Failure, ...]:
    """The strongest firings that the rule misses, and silent tokens that it names, spread evenly."""
    tokens, values = material.firings.of(*feature)
    predicted = scorer.unpacked(said)
    fired = scorer.fired(tokens)
    strength = np.zeros(len(fired))
    places = scorer._place[tokens]
    strength[places[places >= 0]] = values[places >= 0]
    missed = np.flatnonzero(fired & ~predicted)
    missed = missed[np.argsort(-strength[missed], kind="stable")][:FAILURES]
    wrong = np.flatnonzero(predicted & ~fired)
    wrong = wrong[:: -(-len(wrong) // FAILURES) or 1][:FAILURES]
    failures = [(place, True) for place in missed] + [(place, False) for place in wrong]
    return tuple(
        Failure(_context(material, int(scorer.tokens[place])), fired=yes, predicted=not yes)
        for place, yes in failures
    )


def _context(material: Material, token: int) -> str:
    window, position = divmod(
        int(material.sample.places_N[token]), material.sample.tokens_WP.shape[1]
    )
    pieces = [material.pieces[int(i)] for i in material.sample.tokens_WP[window]]
    return in_context(pieces, position)


def _lengths(rules: Sequence[Rule]) -> dict[str, float]:
    """How long rules are: mean numbers of terms and literals."""
    terms = [len(rule) for rule in rules] or [0]
    literals = [sum(map(len, rule)) for rule in rules] or [0]
    return {"terms": float(np.mean(terms)), "literals": float(np.mean(literals))}
