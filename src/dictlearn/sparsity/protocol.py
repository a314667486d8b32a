"""What a sparsity is: a rule that turns pre-activations into a code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, Protocol

import torch
from dictlearn_kernels.selection import Selection
from torch import Tensor, nn

from dictlearn.types import Code, Encoding

Options = dict[str, float | int | bool | None]


class Encoder(Protocol):
    """A linear map to features, as a sparsity sees it."""

    n_sources: int
    n_features: int
    b_enc: Tensor  # [S, F]

    def pre(self, x_NSD: Tensor) -> Tensor:
        """Every pre-activation, in full precision and without gradient: [N*S, F], of whatever sign."""
        ...

    def top_k(self, x_NSD: Tensor, k: int, across: bool = False) -> Selection:
        """The k largest positive pre-activations of each row; `across`, S * k of all S rows of a token.

        These three select without a gradient, from rows (token, source) in that order, and never need
        all pre-activations at once. Where the matmul runs in low precision, the selected set and its
        values are still those of full precision.
        """
        ...

    def batch_top_k(self, x_NSD: Tensor, budget: int, across: bool = False) -> Selection:
        """The batch's largest positive pre-activations: `budget` of each source; `across`, of all."""
        ...

    def above(self, x_NSD: Tensor, threshold_SF: Tensor | float) -> Selection:
        """Every pre-activation above its feature's threshold."""
        ...

    def at(self, x_NSD: Tensor, selection: Selection) -> Code:
        """The selected pre-activations as a Code whose values carry their gradient."""
        ...


class Sparsity(nn.Module, ABC):
    """Abstract. One final class a file, built as `Kind(n_sources, n_features, **options)`."""

    name: str  # how a saved dictionary refers to it
    signed: ClassVar[bool] = False  # whether its codes may hold negative values

    @abstractmethod
    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        """The encoding of all sources; or of `source` alone, whose encoder and x [N, 1, D] they are."""

    @abstractmethod
    def options(self) -> Options:
        """The constructor's own options in plain JSON: with the tensors, they rebuild the module."""

    def anneal(self, progress: float) -> None:  # noqa: B027 most have nothing to anneal
        """Called before every training step with the fraction of the run that is done."""

    def after_step(self) -> None:  # noqa: B027 most have nothing to put back
        """Called after every optimiser step: puts parameters back where they must be."""

    def inference_form(self, pre_RF: Callable[[], Iterable[Tensor]]) -> Sparsity:
        """What replaces this sparsity at inference; `pre_RF()` yields held-out pre-activations."""
        return self

    def rescaled(self, factor_S: Tensor) -> Sparsity:
        """The same rule for pre-activations that are `factor` times as large."""
        return self


def of_source(parameter_SF: Tensor, source: int | None) -> Tensor:
    """A per-feature parameter of all sources, or of one as [1, F]."""
    return parameter_SF if source is None else parameter_SF[source : source + 1]


def refuse_one_layer(source: int | None, across: bool) -> None:
    if across and source is not None:
        raise ValueError(
            "sparsity.across_layers=true: a layer's features cannot be chosen before the later "
            "layers are known, as a free-running replacement must; want false"
        )


def annealed(k: float, k_start: float | None, anneal_for: float, progress: float) -> float:
    """k at a moment of the run: linear from k_start to k over the first `anneal_for` of it."""
    if k_start is None or progress >= anneal_for:
        return k
    return k_start + (k - k_start) * progress / anneal_for


def threshold_for(
    pre_RF: Callable[[], Iterable[Tensor]], active_per_row: float, slack: int = 4
) -> float:
    """The threshold above which a row has `active_per_row` entries on average over all the rows.

    Exact for the rows given: half way between the last entry kept and the first left out. Memory is
    `slack` times the number kept, not rows x features; where rows are so unequal that this loses an
    entry that counts, the rows are read again with more.
    """
    rows, dropped_below = 0, 0.0
    kept: Tensor | None = None
    for batch in pre_RF():
        rows += len(batch)
        positive = batch[batch > dropped_below]
        kept = positive if kept is None else torch.cat([kept, positive])
        most = round(slack * active_per_row * rows) + 1
        if len(kept) > most:
            kept = kept.topk(most).values
            dropped_below = max(dropped_below, float(kept[-1]))
    if kept is None:
        raise ValueError("no activations to calibrate a threshold on")
    budget = round(active_per_row * rows)
    enough = len(kept) > budget
    last, first_out = kept.topk(budget + 1).values[-2:].tolist() if enough else (0.0, 0.0)
    if first_out < dropped_below:
        return threshold_for(pre_RF, active_per_row, 2 * slack)
    return (last + first_out) / 2  # 0 where fewer than the budget are positive: all are kept
