"""The shortest rule that says where a feature fires: a search over conjunctions of predicates.

A rule is a few terms joined by "or"; a term is a few literals joined by "and"; a literal says that a
slot has one of some values. Terms are found one after another, each on what the ones before leave
over (sequential covering, Fuernkranz 1999), each by a beam search that adds one literal at a time.
The values of a literal are those with the highest rate of firing: for a given number of values no
other choice separates better the text that it is made on (Breiman et al. 1984, section 4.2).
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

    slot: int  # place in predicates.SLOTS
    ids: tuple[int, ...]  # predicates of that slot, those with the highest rate of firing first


Term = tuple[Literal, ...]
Rule = tuple[Term, ...]


@dataclass(frozen=True)
class Search:
    """How far the search goes and what a rule's length costs, in units of utility."""

    terms: int = 3
    literals: int = 3  # in a term
    beam: int = 3
    at_least: int = 4  # firings that have a value before it is spoken of,
    share: float = 0.03  # and of the feature's firings
    f1_weight: float = 0.5  # utility is balanced accuracy + this * F1 - costs
    term_cost: float = 0.03
    literal_cost: float = 0.02
    value_cost: float = 0.005  # of every value after a literal's first
    counted: int = 8192  # tokens that a count is made on where there are more


class _Grown(NamedTuple):
    """A term under construction, and the tokens that it holds for."""

    utility: float
    cost: float
    term: Term
    fired: Index
    silent: Index


@final
class RuleFinder:
    """Finds rules for many features over the same tokens.

    Args:
        predicates: of N tokens.
        tokens: indices of those to learn from.
    """

    def __init__(self, predicates: Predicates, tokens: Index, search: Search):
        self.predicates, self.tokens, self.search = predicates, tokens, search
        self._may = np.zeros(len(predicates.table_NC), bool)
        self._may[tokens] = True
        everywhere = np.bincount(predicates.table_NC[tokens].ravel(), minlength=len(predicates))
        self._everywhere_V = everywhere.astype(float)

    def find(self, fired: Index) -> Rule:
        """The best rule for a feature that fires on these tokens; () where none is worth its length.

        Tokens that are not to be learned from are left out.
        """
        fired = fired[self._may[fired]]
        is_fired = np.zeros(len(self._may), bool)
        is_fired[fired] = True
        silent = np.flatnonzero(self._may & ~is_fired)
        if len(fired) < self.search.at_least or not len(silent):
            return ()
        rule = self._covering(fired, silent)
        return self._pruned(rule, is_fired[self.tokens]) if rule else ()

    def _covering(self, fired: Index, silent: Index) -> Rule:
        silent_V = self._everywhere_V - self._count(fired)
        goal = _Goal(len(fired), len(silent), 0.0, 0.0, self.search.f1_weight)
        rule: Rule = ()
        for _ in range(self.search.terms):
            found = self._best_term(fired, silent, silent_V, goal)
            cost = self.search.term_cost if rule else 0.0
            if found is None or found.utility - cost <= goal.now:
                break
            rule = (*rule, found.term)
            goal = goal.after(len(found.fired), len(found.silent))
            silent_V = silent_V - self._count(found.silent)
            fired = np.setdiff1d(fired, found.fired, assume_unique=True)
            silent = np.setdiff1d(silent, found.silent, assume_unique=True)
        return rule

    def _pruned(self, rule: Rule, fired_E: NDArray[np.bool_]) -> Rule:
        """Without the terms and literals that later ones have made unnecessary."""
        n_fired = int(fired_E.sum())
        start = _Goal(n_fired, len(fired_E) - n_fired, 0.0, 0.0, self.search.f1_weight)

        def worth(shorter: Rule) -> float:
            held_E = holds(self.predicates, shorter, self.tokens)
            tp = int((held_E & fired_E).sum())
            return start.after(tp, int(held_E.sum()) - tp).now - self._cost(shorter)

        best = worth(rule)
        while True:
            shorter = [(worth(one), one) for one in _shortened(rule)]
            if not shorter or (found := max(shorter, key=lambda pair: pair[0]))[0] < best:
                return rule
            best, rule = found

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
                for one in beam
                for longer in self._grow(one, goal, None if one.term else silent_V)
            ]
            beam = sorted(grown, key=lambda one: -one.utility)[: self.search.beam]
            if not beam or (best is not None and beam[0].utility <= best.utility):
                break
            best = beam[0]
        return best

    def _grow(self, one: _Grown, goal: _Goal, silent_V: Counts | None) -> Iterator[_Grown]:
        """The term with each of the few most useful literals more, of different slots."""
        least = max(self.search.at_least, self.search.share * goal.n_fired)
        if len(one.fired) < least:
            return
        fired_V = self._count(one.fired)
        silent_V = self._count(one.silent) if silent_V is None else silent_V
        options = _options(fired_V, silent_V, self.predicates.slots, least)
        cost = one.cost + self.search.literal_cost + self.search.value_cost * options.rank
        utility = goal.reached(options.fired, options.silent) - cost
        used = {literal.slot for literal in one.term}
        for place in np.argsort(-utility, kind="stable"):  # a tie goes to the plainer slot
            slot = int(options.slot[place])
            if slot in used:
                continue
            used.add(slot)
            literal = Literal(slot, options.ids_up_to(int(place)))
            yield _Grown(
                float(utility[place]),
                float(cost[place]),
                (*one.term, literal),
                one.fired[_holds(self.predicates, literal, one.fired)],
                one.silent[_holds(self.predicates, literal, one.silent)],
            )
            if len(used) == len(one.term) + self.search.beam:
                return

    def _count(self, tokens: Index) -> Counts:
        """How many of the tokens have each predicate; an estimate where there are many."""
        step = -(-len(tokens) // self.search.counted) or 1
        table_MC = self.predicates.table_NC[tokens[::step]]
        counts_V = np.bincount(table_MC.ravel(), minlength=len(self.predicates))
        return counts_V.astype(np.float64) * (len(tokens) / max(len(table_MC), 1))


@dataclass(frozen=True)
class _Goal:
    """What a rule is measured by, and what its terms so far hold for."""

    n_fired: int
    n_silent: int
    tp: float
    fp: float
    f1_weight: float

    def reached(self, fired: Counts, silent: Counts) -> Counts:
        """The utility with so many more firings and silent tokens covered, costs not counted."""
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
    """Every literal worth a look: entry i has the values of entries i - rank[i] to i."""

    slot: NDArray[np.int16]
    id: Index
    rank: Index
    fired: Counts
    silent: Counts

    def ids_up_to(self, place: int) -> tuple[int, ...]:
        return tuple(self.id[place - self.rank[place] : place + 1].tolist())


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
    """The rule without one of its terms, and without one literal of a term."""
    for place, term in enumerate(rule):
        others = rule[:place], rule[place + 1 :]
        if len(rule) > 1:
            yield (*others[0], *others[1])
        for gone in range(len(term) if len(term) > 1 else 0):
            yield (*others[0], term[:gone] + term[gone + 1 :], *others[1])


def _holds(predicates: Predicates, literal: Literal, tokens: Index) -> NDArray[np.bool_]:
    wanted_V = np.zeros(len(predicates), bool)
    wanted_V[list(literal.ids)] = True
    columns = predicates.columns(literal.slot)
    return np.asarray(wanted_V[predicates.table_NC[tokens, columns]].any(1))


def holds(predicates: Predicates, rule: Rule, tokens: Index) -> NDArray[np.bool_]:
    """Which of the tokens the rule says the feature fires on."""
    found = np.zeros(len(tokens), bool)
    for term in rule:
        left = np.arange(len(tokens))
        for literal in term:
            left = left[_holds(predicates, literal, tokens[left])]
        found[left] = True
    return found
