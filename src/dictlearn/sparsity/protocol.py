"""What a sparsity is: a rule that turns pre-activations into a code."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import ClassVar, NamedTuple, Protocol

import torch
from dictlearn_kernels.selection import Selection
from torch import Tensor, nn

from dictlearn.types import Code, Encoding

Options = dict[str, float | int | bool | None]

EQUAL = 0.02  # relative: norms that differ by less were 1 in other units; only near ties notice


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

    def where(self, x_NSD: Tensor, keep: Callable[[Tensor], Tensor]) -> Selection:
        """Those that `keep` says: it is given whole rows, [rows, F] in full precision, and gives a bool
        for each entry. For rules that none of the others serves; a few rows exist at a time.
        """
        ...

    def at(self, x_NSD: Tensor, selection: Selection) -> Code:
        """The selected pre-activations as a Code whose values carry their gradient."""
        ...


class Thresholded(NamedTuple):
    """A rule as JumpReLU: with v = scale (pre - b_enc) + bias, a feature is v where v > threshold, else
    silent. Each is [S, F]; the threshold is not negative.
    """

    scale_SF: Tensor
    bias_SF: Tensor
    threshold_SF: Tensor


class Sparsity(nn.Module, ABC):
    """Abstract. One final class a file, built as `Kind(n_sources, n_features, **options)`.

    Others ask a sparsity, and never which one it is. Where an answer that suits most could be wrong
    for some, there is none until the class gives it: ValueError says what the class has to define.
    """

    name: str  # how a saved dictionary refers to it
    signed: ClassVar[bool] = False  # whether a feature that fires may be negative
    selects: ClassVar[bool] = False  # whether one that fires has its pre-activation as its value
    across_layers = False  # whether it compares features of several sources

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

    # --- the same function with other parameters -----------------------------------------------

    @abstractmethod
    def rescaled(self, factor_SF: Tensor) -> Sparsity:
        """The rule by which features that are `factor` times as large fire as before: 1, 2, 2.

        `factor` is [S, F]; [S, 1] where the features of a source grow alike. A rule that compares
        features raises ValueError where they don't (`alike`). One without a scale of its own, which
        `f(c pre) = c f(pre)` says, gives itself.
        """

    def shifted(self, shift_SF: Tensor) -> Sparsity:
        """The same rule where `shift` was added to `encoder.b_enc` and taken from what is added to it.

        So pre-activations are what they were: a rule that reads nothing else gives itself.
        """
        raise ValueError(self._unsaid("what it is with another centre", "shifted"))

    def as_jumprelu(self, b_enc_SF: Tensor) -> Thresholded | None:
        """What it is as JumpReLU, exactly; None where it is none."""
        return None

    # --- training that starts from another ------------------------------------------------------

    def starts_from(self, other: Sparsity) -> bool:
        """Whether training can begin with `other`'s parameters, or with none of its own."""
        if type(other) is type(self):
            return True
        bare = not self.state_dict()
        return bare and self.selects and other.selects and self.signed == other.signed

    def start_from(
        self, other: Sparsity, b_enc_SF: Tensor, thresholds: Callable[[], Tensor]
    ) -> None:
        """Takes over what `other`, which `starts_from` allows, has learnt; in place.

        `thresholds()` are those above which dict.k features fire per token, [S, F].
        """
        if type(other) is type(self):
            self.load_state_dict(other.state_dict())

    # --- cost -----------------------------------------------------------------------------------

    def entries(self, k: float) -> float:
        """How many entries per token and source training stores once features have learned dict.k."""
        raise ValueError(self._unsaid("how many entries of each token it stores", "entries"))

    def first_entries(self, k: float, n_features: int) -> float:
        """How many of the n_features entries per token and source the first steps store."""
        return self.entries(k)

    def _unsaid(self, what: str, method: str) -> str:
        return f"sparsity={self.name}: its class doesn't say {what}; want {type(self).__name__}.{method}"


def alike(factor_SF: Tensor, name: str) -> None:
    """ValueError, in one sentence, where features of a source grow by different factors."""
    low, high = factor_SF.amin(1), factor_SF.amax(1)
    if bool((high - low > EQUAL * high).any()):
        raise ValueError(
            f"features that grow by factors from {float(low.min()):.3g} to {float(high.max()):.3g} "
            f"are not those that {name} takes, because it compares them"
        )


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
