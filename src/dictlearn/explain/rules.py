"""Searches for the shortest rule that predicts a feature's firing.

A rule is a few terms joined by "or"; a term is a few literals joined by "and"; a literal says that a
slot has one of some values. Terms are found one after another, each on the tokens that earlier ones
leave (sequential covering, Fuernkranz 1999), by a beam search that adds one literal at a time. The
values of a literal are those with the highest rate of firing: for a given number of values no other
choice separates the training text better (Breiman et al. 1984, section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from dictlearn.explain.predicates import SLOTS, Predicates

Index = NDArray[np.int64]
Counts = NDArray[np.float64]


_MOST = np.array([slot.most for slot in SLOTS])


@dataclass(frozen=True)
class Literal:
    """The slot has one of these values."""

    slot: int  # index in predicates.SLOTS
    ids: tuple[int, ...]  # predicates of the slot, by descending rate of firing


Term = tuple[Literal, ...]
Rule = tuple[Term, ...]


@dataclass(frozen=True)
class Search:
    """The extent of the search, and the costs of a rule's length in units of utility."""

    terms: int = 3
    literals: int = 3  # per term
    beam: int = 3
    at_least: int = 4  # firings with a value that it needs to be used
    share: float = 0.03  # share of the feature's firings that a value needs to be used
    f1_weight: float = 0.5  # utility is balanced accuracy + f1_weight * F1 - costs
    term_cost: float = 0.03
    literal_cost: float = 0.02
    value_cost: float = 0.005  # for every value after a literal's first
    counted: int = 8192  # most tokens that are counted; counts of more are estimated


class _Grown(NamedTuple):
    """A term during the search, and the tokens for which it holds."""

    utility: float
    cost: float
    term: Term
    fired: Index
    silent: Index


@final
class RuleFinder:
    """Finds rules for many features over the same tokens.

    Args:
        predicates: predicates of N tokens.
        tokens: indices of the tokens to learn from.
    """

    def __init__(self, predicates: Predicates, tokens: Index, search: Search):
        self.predicates, self.tokens, self.search = predicates, tokens, search
        self._learned_N = np.zeros(len(predicates.table_NC), bool)
        self._learned_N[tokens] = True
        everywhere = np.bincount(predicates.table_NC[tokens].ravel(), minlength=len(predicates))
        self._everywhere_V = everywhere.astype(float)

    def find(self, fired: Index) -> Rule:
        """The best rule for a feature that fires on `fired`; () where none is worth its length.

        Tokens that are not in `self.tokens` are left out.
        """
        fired = fired[self._learned_N[fired]]
        is_fired = np.zeros(len(self._learned_N), bool)
        is_fired[fired] = True
        silent = np.flatnonzero(self._learned_N & ~is_fired)
        if len(fired) < self.search.at_least or not len(silent):
            return ()
        rule = self._covering(fired, silent)
        return self._pruned(rule, is_fired[self.tokens]) if rule else ()

    def _covering(self, fired: Index, silent: Index) -> Rule:
        silent_V = self._everywhere_V - self._count(fired)
        goal = _Goal(len(fired), len(silent), 0.0, 0.0, self.search.f1_weight)
        rule: Rule = ()
        for _ in range(self.search.terms):
            best = self._best_term(fired, silent, silent_V, goal)
            cost = self.search.term_cost if rule else 0.0
            if best is None or best.utility - cost <= goal.now:
                break
            rule = (*rule, best.term)
            goal = goal.after(len(best.fired), len(best.silent))
            silent_V = silent_V - self._count(best.silent)
            fired = np.setdiff1d(fired, best.fired, assume_unique=True)
            silent = np.setdiff1d(silent, best.silent, assume_unique=True)
        return rule

    def _pruned(self, rule: Rule, fired_E: NDArray[np.bool_]) -> Rule:
        """The rule without terms and literals that later ones make unnecessary."""
        n_fired = int(fired_E.sum())
        start = _Goal(n_fired, len(fired_E) - n_fired, 0.0, 0.0, self.search.f1_weight)

        def worth(shorter: Rule) -> float:
            held_E = holds(self.predicates, shorter, self.tokens)
            tp = int((held_E & fired_E).sum())
            return start.after(tp, int(held_E.sum()) - tp).now - self._cost(shorter)

        best = worth(rule)
        while True:
            shorter = [(worth(candidate), candidate) for candidate in _shortened(rule)]
            if not shorter or (better := max(shorter, key=lambda pair: pair[0]))[0] < best:
                return rule
            best, rule = better

    def _cost(self, rule: Rule) -> float:
        search, literals = self.search, [literal for term in rule for literal in term]
        values = sum(len(literal.ids) - 1 for literal in literals)
        return (
            search.term_cost * (len(rule) - 1)
            + search.literal_cost * len(literals)
            + search.value_cost * values
        )

    def _best_term(
        self, fired: Index, silent: Index, silent_V: Counts, goal: _Goal
    ) -> _Grown | None:
        best: _Grown | None = None
        beam = [_Grown(-np.inf, 0.0, (), fired, silent)]
        for _ in range(self.search.literals):
            grown = [
                longer
                for start in beam
                for longer in self._grow(start, goal, None if start.term else silent_V)
            ]
            beam = sorted(grown, key=lambda term: -term.utility)[: self.search.beam]
            if not beam or (best is not None and beam[0].utility <= best.utility):
                break
            best = beam[0]
        return best

    def _grow(self, start: _Grown, goal: _Goal, silent_V: Counts | None) -> Iterator[_Grown]:
        """Yields the term with each of the few most useful literals added, of different slots."""
        least = max(self.search.at_least, self.search.share * goal.n_fired)
        if len(start.fired) < least:
            return
        fired_V = self._count(start.fired)
        silent_V = self._count(start.silent) if silent_V is None else silent_V
        options = _options(fired_V, silent_V, self.predicates.slots, least)
        cost = start.cost + self.search.literal_cost + self.search.value_cost * options.rank
        utility = goal.reached(options.fired, options.silent) - cost
        used = {literal.slot for literal in start.term}
        for i in np.argsort(-utility, kind="stable"):  # a tie goes to the earlier slot
            slot = int(options.slot[i])
            if slot in used:
                continue
            used.add(slot)
            literal = Literal(slot, options.ids_up_to(int(i)))
            yield _Grown(
                float(utility[i]),
                float(cost[i]),
                (*start.term, literal),
                start.fired[_holds(self.predicates, literal, start.fired)],
                start.silent[_holds(self.predicates, literal, start.silent)],
            )
            if len(used) == len(start.term) + self.search.beam:
                return

    def _count(self, tokens: Index) -> Counts:
        """Number of the tokens with each predicate; estimated if they are more than `search.counted`."""
        step = -(-len(tokens) // self.search.counted) or 1
        table_MC = self.predicates.table_NC[tokens[::step]]
        counts_V = np.bincount(table_MC.ravel(), minlength=len(self.predicates))
        return counts_V.astype(np.float64) * (len(tokens) / max(len(table_MC), 1))


@dataclass(frozen=True)
class _Goal:
    """The measure of a rule, and the counts of the tokens that its terms hold for so far."""

    n_fired: int
    n_silent: int
    tp: float
    fp: float
    f1_weight: float

    def reached(self, fired: Counts, silent: Counts) -> Counts:
        """The utility, without costs, if `fired` firings and `silent` silent tokens more are covered."""
        tp, fp = self.tp + fired, self.fp + silent
        balanced = (tp / self.n_fired + 1 - fp / self.n_silent) / 2
        f1 = 2 * tp / (tp + fp + self.n_fired)
        return np.asarray(balanced + self.f1_weight * f1, np.float64)

    @property
    def now(self) -> float:
        return float(self.reached(np.zeros(1), np.zeros(1))[0])

    def after(self, fired: int, silent: int) -> _Goal:
        return _Goal(self.n_fired, self.n_silent, self.tp + fired, self.fp + silent, self.f1_weight)


class _Options(NamedTuple):
    """The candidate literals: entry i has the values of entries i - rank[i] to i."""

    slot: NDArray[np.int16]
    id: Index
    rank: Index
    fired: Counts
    silent: Counts

    def ids_up_to(self, i: int) -> tuple[int, ...]:
        return tuple(self.id[i - self.rank[i] : i + 1].tolist())


def _options(
    fired_V: Counts, silent_V: Counts, slots_V: NDArray[np.int16], least: float
) -> _Options:
    fired_V[0] = 0
    ids = np.flatnonzero(fired_V >= least)
    fired, silent = fired_V[ids], np.maximum(silent_V[ids], 0)
    rate = fired / (fired + silent + 1)
    order = np.lexsort((-rate, slots_V[ids]))
    ids, fired, silent = ids[order], fired[order], silent[order]
    slot = slots_V[ids]
    begins = np.flatnonzero(np.diff(slot, prepend=-1))
    begin = np.repeat(begins, np.diff(begins, append=len(slot)))
    rank = np.arange(len(slot)) - begin

    def running(counts: Counts) -> Counts:
        total = np.cumsum(counts)
        return total - (total - counts)[begin]

    few = rank < _MOST[slot]
    return _Options(slot[few], ids[few], rank[few], running(fired)[few], running(silent)[few])


def _shortened(rule: Rule) -> Iterator[Rule]:
    """Yields the rule without each of its terms, and without each literal of a term."""
    for i, term in enumerate(rule):
        before, after = rule[:i], rule[i + 1 :]
        if len(rule) > 1:
            yield (*before, *after)
        for j in range(len(term) if len(term) > 1 else 0):
            yield (*before, term[:j] + term[j + 1 :], *after)


def _holds(predicates: Predicates, literal: Literal, tokens: Index) -> NDArray[np.bool_]:
    named_V = np.zeros(len(predicates), bool)
    named_V[list(literal.ids)] = True
    columns = predicates.columns(literal.slot)
    return np.asarray(named_V[predicates.table_NC[tokens, columns]].any(1))


def holds(predicates: Predicates, rule: Rule, tokens: Index) -> NDArray[np.bool_]:
    """Marks the tokens for which the rule holds."""
    held = np.zeros(len(tokens), bool)
    for term in rule:
        left = np.arange(len(tokens))
        for literal in term:
            left = left[_holds(predicates, literal, tokens[left])]
        held[left] = True
    return held
