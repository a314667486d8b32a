"""What a sparsity is: a rule that turns pre-activations into a code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Protocol

import torch
from dictlearn_kernels.top_k import Selection, interleaved
from torch import Tensor, nn

from dictlearn.types import Code, Encoding

Options = dict[str, float | int | bool | None]


class Encoder(Protocol):
    """A linear map to features, as a sparsity sees it."""

    n_sources: int
    n_features: int
    b_enc: Tensor  # [S, F]

    def pre(self, x_NSD: Tensor, contenders: Callable[[Tensor], Selection]) -> Tensor:
        """Pre-activations for selection, without gradient: [N*S, F], float32 or better.

        Where the matmul runs in low precision, `contenders` says which of its rough results could be
        selected: those are evaluated again exactly, all others are -inf. So the selected set and its
        values are those of full precision as long as the contenders hold it.
        """
        ...

    def at(self, x_NSD: Tensor, selection: Selection) -> Code:
        """The selected pre-activations as a Code whose values carry their gradient."""
        ...


class Sparsity(nn.Module, ABC):
    """Abstract. One final class a file, built as `Kind(n_sources, n_features, **options)`."""

    name: str  # how a saved dictionary refers to it

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


def by_layer(select: Callable[[Tensor], Selection], pre_RF: Tensor, n_sources: int) -> Selection:
    """`select` applied to the rows of each source apart: one selection over all rows."""
    return interleaved([select(pre_RF[source::n_sources]) for source in range(n_sources)])


def across_layers(
    select: Callable[[Tensor], Selection], pre_RF: Tensor, n_sources: int
) -> Selection:
    """`select` applied to each token's features of all sources together, given back per source."""
    if n_sources == 1:
        return select(pre_RF)
    n_features = pre_RF.shape[1]
    row_starts, columns, values = select(pre_RF.view(-1, n_sources * n_features))
    token = torch.arange(len(row_starts) - 1, device=columns.device)
    token = token.repeat_interleave(row_starts.diff(), output_size=len(columns))
    counts = torch.bincount(token * n_sources + columns // n_features, minlength=len(pre_RF))
    return torch.nn.functional.pad(counts.cumsum(0), (1, 0)), columns % n_features, values


def refuse_one_layer(source: int | None, across: bool) -> None:
    if across and source is not None:
        raise ValueError(
            "sparsity.across_layers=true: a layer's features cannot be chosen before the later "
            "layers are known, as a free-running replacement must; want false"
        )


def widened(k: float) -> int:
    """How many to take by rough values so that the k best by exact ones are almost surely there.

    bfloat16 ranks about 1% of the last few wrongly; on real activations 40 for 32 leave out 0.03%.
    """
    return round(1.25 * k) + 8


ROUGH_MARGIN = 1 / 16  # of a threshold, in normalised units: several times bfloat16's error


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
