"""Measures what co-occurring features say about the next token beyond each feature alone.

For two features that fire or not, a and b, and the next token y: the connected information of third
order (Schneidman, Still, Berry & Bialek 2003, "Network information and connected correlations",
Phys. Rev. Lett. 91, 238701; Amari 2001 for the geometry),

    I_3 = KL(p(a, b, y) || p2(a, b, y)),

where p2 is the distribution of greatest entropy with the pair marginals of p. In p2, log p2(y | a, b)
is a sum of a term for a, one for b and one for y: each feature adds its own logits, as a sparse
dictionary is read. So I_3 is zero where the features mean the same together as apart, however often
they fire together; for the exclusive-or of two coins it is log 2, all there is. A dictionary trained
on cross entropy alone gains by packing such meaning into features that co-occur; I_3 shows it.

Finite samples have I_3 > 0 by chance. The I_3 of the same number of tokens drawn from p2 estimates
that part (parametric bootstrap) and is subtracted, so a figure may be slightly below zero. Where
cells hold two tokens each, a fifth of the chance part is left: compare dictionaries on equal text.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import final

import torch
from torch import Tensor

from dictlearn.evals.comparison import scored_positions
from dictlearn.evals.context import EvalContext, EvalResult, Observation
from dictlearn.evals.observe import observe
from dictlearn.ranges import Count, Several
from dictlearn.types import Code

CYCLES = 60  # of proportional fitting: converges to 1e-6 nats on tables of this kind
REPLICATES = 2  # of every table in the bootstrap; their mean is subtracted


@final
@dataclass(frozen=True)
class Cooccurrence:
    """Figures, pooled over the most co-firing pairs of the most frequent features:

    - `cooccurrence/share`: sum of I_3 over the sum of I(a, b; y), the part of the pairs' information
      about the next token that neither feature carries alone;
    - `cooccurrence/nats`: I_3 in nats for each token on which both fire;
    - `cooccurrence/mutual_information`: mean I(a; b), how much the features of a pair co-occur.

    Args:
        features: number of features to pair, the most frequent ones over all sources.
        pairs: number of pairs, those that fire together most often.
        classes: classes of the next token: the most frequent tokens, and one for all others.
        pilot_tokens: positions on which features, pairs and classes are chosen.
        max_tokens: positions to count on. null: as many as the evaluation reads.

    Memory is pairs x classes, and N x pairs for one batch of N tokens.
    """

    features: Several = 256
    pairs: Count = 1024
    classes: Several = 64
    pilot_tokens: Several = 8192
    max_tokens: Count | None = None

    def __call__(self, context: EvalContext) -> EvalResult:
        windows = context.windows
        assert windows is not None, "co-occurrence is counted on held-out text"
        context = replace(context, rows={})  # baselines have no features
        pilot = [firings(seen) for seen in observe(context, windows, self.pilot_tokens)]
        chosen = choose(pilot, self.features, self.pairs, self.classes)
        if chosen is None:
            return EvalResult()
        counts = Counts(chosen)
        for seen in observe(context, windows, self.max_tokens or context.n_tokens):
            counts.update(firings(seen))
        return EvalResult(figures=figures(counts.tables(), context.seed))


@final
@dataclass(frozen=True, eq=False)
class Firings:
    """The features that fire on tokens whose next token is known, as entries without values."""

    token: Tensor  # int64 [nnz], ascending
    feature: Tensor  # int64 [nnz], source * F + id
    next_token: Tensor  # int64 [N]


def firings(seen: Observation) -> Firings:
    """Firings on the valid tokens that a valid token follows."""
    valid_BP = torch.zeros_like(seen.text_BP)
    valid_BP[seen.text_BP] = seen.valid_N
    scored_N = scored_positions(valid_BP)[seen.text_BP]
    next_N = seen.tokens_BP.roll(-1, dims=1)[seen.text_BP]
    return firings_of(seen.code, next_N, scored_N)


def firings_of(code: Code, next_N: Tensor, keep_N: Tensor) -> Firings:
    rank_N = keep_N.cumsum(0) - 1
    token = code.rows // code.n_sources
    kept = keep_N[token]
    feature = code.pattern.columns[kept]
    return Firings(rank_N[token[kept]].cpu(), feature.cpu(), next_N[keep_N].cpu())


@final
@dataclass(frozen=True, eq=False)
class Chosen:
    features_M: Tensor  # int64, ascending
    pairs_2P: Tensor  # int64, indices into features_M
    classes: Tensor  # int64, ascending token ids; every other token is one class more

    def dense(self, fired: Firings) -> Tensor:
        """float [N, M]: 1 where a token fires a chosen feature, else 0."""
        index = torch.searchsorted(self.features_M, fired.feature)
        index = index.clamp(max=len(self.features_M) - 1)
        chosen = self.features_M[index] == fired.feature
        fired_NM = torch.zeros(len(fired.next_token), len(self.features_M))
        fired_NM[fired.token[chosen], index[chosen]] = 1.0
        return fired_NM

    def class_of(self, token_N: Tensor) -> Tensor:
        class_N = torch.searchsorted(self.classes, token_N).clamp(max=len(self.classes) - 1)
        return torch.where(self.classes[class_N] == token_N, class_N, len(self.classes))


def choose(pilot: list[Firings], n_features: int, n_pairs: int, n_classes: int) -> Chosen | None:
    """The most frequent features and next tokens, and the pairs that fire together most.

    Ties go to the lower id. None where no two features fire together.
    """
    if not pilot:
        return None
    features_M = _most_frequent(torch.cat([fired.feature for fired in pilot]), n_features)
    tokens = _most_frequent(torch.cat([fired.next_token for fired in pilot]), n_classes - 1)
    if len(features_M) < 2:
        return None
    no_pairs = torch.zeros(2, 0, dtype=torch.int64)
    chosen = Chosen(features_M, no_pairs, tokens)
    together_MM = sum((dense.T @ dense for dense in map(chosen.dense, pilot)), torch.zeros(()))
    first, second = torch.triu_indices(len(features_M), len(features_M), offset=1)
    count = together_MM[first, second]
    order = count.argsort(descending=True, stable=True)[:n_pairs]
    order = order[count[order] > 0]
    if len(order) == 0:
        return None
    return replace(chosen, pairs_2P=torch.stack([first[order], second[order]]))


def _most_frequent(values: Tensor, n: int) -> Tensor:
    unique, count = values.unique(return_counts=True)
    return unique[count.argsort(descending=True, stable=True)[:n]].sort().values


@final
@dataclass(eq=False)
class Counts:
    """Counts tokens by pair, by which of its features fire, and by class of the next token."""

    chosen: Chosen
    both_PK: Tensor = field(init=False)
    each_MK: Tensor = field(init=False)
    all_K: Tensor = field(init=False)

    def __post_init__(self) -> None:
        n_classes = len(self.chosen.classes) + 1
        sizes = (self.chosen.pairs_2P.shape[1], len(self.chosen.features_M))
        self.both_PK, self.each_MK = (
            torch.zeros(size, n_classes, dtype=torch.float64) for size in sizes
        )
        self.all_K = torch.zeros(n_classes, dtype=torch.float64)

    def update(self, fired: Firings) -> None:
        fired_NM = self.chosen.dense(fired)
        class_N = self.chosen.class_of(fired.next_token)
        is_class_NK = torch.nn.functional.one_hot(class_N, len(self.all_K)).float()
        first_P, second_P = self.chosen.pairs_2P
        both_NP = fired_NM[:, first_P] * fired_NM[:, second_P]
        self.both_PK += (both_NP.T @ is_class_NK).double()  # exact: whole numbers below 2^24
        self.each_MK += (fired_NM.T @ is_class_NK).double()
        self.all_K += is_class_NK.double().sum(0)

    def tables(self) -> Tensor:
        """[P, 2, 2, K]: first feature silent or firing, second likewise, class."""
        first_PK, second_PK = (self.each_MK[indices] for indices in self.chosen.pairs_2P)
        only_first, only_second = first_PK - self.both_PK, second_PK - self.both_PK
        neither = self.all_K - only_first - only_second - self.both_PK
        silent = torch.stack([neither, only_second], 1)
        return torch.stack([silent, torch.stack([only_first, self.both_PK], 1)], 1)


def figures(tables_P22K: Tensor, seed: int = 0) -> dict[str, float]:
    """The figures of `Cooccurrence` from counts; chance's part is subtracted from each information."""
    random = torch.Generator().manual_seed(seed)
    n_P = tables_P22K.sum((1, 2, 3))
    additive = without_interaction(tables_P22K)
    apart = independent_of_the_pair(tables_P22K)
    third_P = divergence(tables_P22K, additive)
    about_next_P = divergence(tables_P22K, apart)
    for _ in range(REPLICATES):
        drawn = torch.poisson(additive, generator=random)
        third_P = third_P - divergence(drawn, without_interaction(drawn)) / REPLICATES
        drawn = torch.poisson(apart, generator=random)
        chance_P = divergence(drawn, independent_of_the_pair(drawn))
        about_next_P = about_next_P - chance_P / REPLICATES
    pair_P22 = tables_P22K.sum(3)
    expected_P22 = pair_P22.sum(2, keepdim=True) * pair_P22.sum(1, keepdim=True)
    expected_P22 = expected_P22 / n_P[:, None, None].clamp(min=1)
    information_P = divergence(pair_P22[..., None], expected_P22[..., None])
    total = float(about_next_P.sum())
    return {
        "cooccurrence/share": float(third_P.sum()) / total if total > 0 else float("nan"),
        "cooccurrence/nats": float((third_P * n_P).sum() / pair_P22[:, 1, 1].sum().clamp(min=1)),
        "cooccurrence/mutual_information": float(information_P.mean()),
        "cooccurrence/pairs": float(len(tables_P22K)),
    }


def without_interaction(tables_P22K: Tensor) -> Tensor:
    """The tables of greatest entropy with the same pair marginals, by proportional fitting."""
    fitted = torch.ones_like(tables_P22K)
    for _ in range(CYCLES):
        for axis in (3, 2, 1):
            now, marginal = fitted.sum(axis, keepdim=True), tables_P22K.sum(axis, keepdim=True)
            fitted = fitted * torch.where(now > 0, marginal / now, 0.0)
    return fitted


def independent_of_the_pair(tables_P22K: Tensor) -> Tensor:
    """The tables in which the class does not depend on the features."""
    n = tables_P22K.sum((1, 2, 3), keepdim=True).clamp(min=1)
    return tables_P22K.sum(3, keepdim=True) * tables_P22K.sum((1, 2), keepdim=True) / n


def divergence(counts_P22K: Tensor, fitted_P22K: Tensor) -> Tensor:
    """KL in nats per token of two tables with the same total: [P]. 0 log 0 is 0."""
    n_P = counts_P22K.sum((1, 2, 3)).clamp(min=1)
    ratio = counts_P22K / fitted_P22K.clamp(min=torch.finfo(torch.float64).tiny)
    return torch.special.xlogy(counts_P22K, ratio).sum((1, 2, 3)) / n_P
