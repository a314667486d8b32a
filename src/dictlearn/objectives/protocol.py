"""The interface of an objective term, and the parts of a training step that it can read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from dictlearn.lm.language_model import LanguageModel
from dictlearn.objectives.teacher import Teacher
from dictlearn.ranges import Fraction, NonNegative
from dictlearn.types import Code, Encoding, TrainedDictionary


@dataclass(frozen=True)
class Windows:
    """The text behind a batch of whole windows, and the way from raw to normalised units."""

    tokens_BP: Tensor  # int64
    valid_BP: Tensor  # bool; the batch's rows are these positions, in reading order
    input_scale_S: Tensor
    output_scale_T: Tensor


@dataclass(frozen=True)
class Forward:
    """One training step's forward pass, in normalised units.

    Values that several terms read are computed once, and do not depend on which term asks first. With
    whole windows there is a reconstruction with its graph, which terms that run the model read too.
    Without them, or if such a graph would be large (`dictionary.streams`), the squared error comes
    from a kernel that keeps only the residual.
    """

    dictionary: TrainedDictionary
    x_NSD: Tensor
    y_NTD: Tensor
    encoding: Encoding
    dead_SF: Tensor  # bool: has not fired for `dead_after` tokens
    progress: float  # fraction of the run that is done
    loss_scale: float  # the reduction's divisor, a constant of the run
    windows: Windows | None = None  # None for a batch of shuffled tokens
    # What means over these tokens count where processes have unequal numbers; None: as much as others'.
    share: Tensor | None = None

    @cached_property
    def y_hats(self) -> Sequence[Tensor]:
        """Reconstructions [N, T, D] with graphs, one per nested prefix; the whole dictionary is last."""
        return self.dictionary.decode_prefixes(self.encoding.support, self.x_NSD)

    @property
    def y_hat_NTD(self) -> Tensor:
        return self.y_hats[-1]

    @property
    def _keeps_y_hat(self) -> bool:
        return self.windows is not None and not self.dictionary.streams

    @cached_property
    def residual_NTD(self) -> Tensor:
        """y - y_hat without its graph."""
        if self._keeps_y_hat:
            return (self.y_NTD - self.y_hat_NTD).detach()
        return torch.stack(list(self._residuals), dim=1)

    @cached_property
    def _residuals(self) -> Sequence[Tensor]:
        """y - y_hat of every target, if `squared_error` has not computed it already."""
        with torch.no_grad():
            return self._streamed_error(self._even_weights())[1]

    def squared_error(self, weights: Sequence[float] | None = None) -> Tensor:
        """sum_g weights[g] reduce(y - y_hat_g) over the nested prefixes g; None: their mean."""
        weights = self._even_weights() if weights is None else weights
        if self._keeps_y_hat:
            errors = torch.stack([self.reduce(self.y_NTD - y_hat) for y_hat in self.y_hats])
            return errors @ errors.new_tensor(weights)
        value, residuals = self._streamed_error(weights)
        self.__dict__["_residuals"] = residuals  # the same numbers as `_residuals` would compute
        return value

    def _even_weights(self) -> Sequence[float]:
        n_prefixes = max(1, len(self.dictionary.prefixes))
        return [1 / n_prefixes] * n_prefixes

    def _streamed_error(self, weights: Sequence[float]) -> tuple[Tensor, Sequence[Tensor]]:
        return self.dictionary.squared_error(
            self.encoding.support, self.x_NSD, self.y_NTD, self._per_token(weights)
        )

    def _per_token(self, weights: Sequence[float]) -> list[float]:
        """Converts weights of `reduce`'s values into weights of summed squares."""
        return [weight / (len(self.y_NTD) * self.loss_scale) for weight in weights]

    def features_error(self, code: Code, weight: float) -> Tensor:
        """weight * reduce(residual - what the code decodes to, without a bias); no gradient in y."""
        weights = self._per_token([weight])
        return self.dictionary.squared_error(
            code, self.x_NSD, self.residual_NTD, weights, only_features=True
        )[0]

    def reduce(self, error_NTD: Tensor) -> Tensor:
        """Squared error summed over sites and width, mean over tokens, over the loss scale."""
        return error_NTD.square().sum() / (len(error_NTD) * self.loss_scale)


class Term(nn.Module, ABC):
    """Abstract. A term of the loss: its value times `coefficient`.

    The coefficient rises linearly from 0 over the first `warmup` of the run (a fraction). A term's
    state from step to step is in buffers, and so in every checkpoint.
    """

    of_all = (
        False  # whether the value is that of all processes' batches, not a mean over tokens of one
    )
    reads_windows = False  # whether the class needs batches of whole windows, and the model
    wants_sparsity: ClassVar[str | None] = None  # the only one for which the term has a meaning
    # How terms of this class change L0; None if they don't.
    steers_l0: Literal["to a target", "by its weight"] | None = None

    def __init__(self, coefficient: NonNegative = 1.0, warmup: Fraction = 0.0):
        super().__init__()
        self.coefficient, self.warmup = coefficient, warmup

    @abstractmethod
    def value(self, forward: Forward) -> Tensor:
        """The unweighted value, a scalar."""

    def forward(self, forward: Forward) -> Tensor:
        ramp = min(1.0, forward.progress / self.warmup) if self.warmup > 0 else 1.0
        return self.coefficient * ramp * self.value(forward)

    def check(self, dictionary: TrainedDictionary) -> None:  # noqa: B027 most have a meaning everywhere
        """Raises ValueError before any work if the term has no meaning for this dictionary."""

    def connect(self, lm: LanguageModel, teacher: Teacher, dictionary: TrainedDictionary) -> None:  # noqa: B027
        """Receives model and teacher before the first step, if the term `reads_windows`."""

    def revived(self, dictionary: TrainedDictionary, dead: float) -> float:
        """Features per token and source of a second code that the term makes, for `dictlearn plan`.

        `dead` is the share of features that are dead. 0: the term makes none.
        """
        return 0.0

    def after_step(self, accepted: bool) -> None:  # noqa: B027
        """Called once an optimiser step; a refused step must change no state."""

    def figures(self) -> dict[str, float]:
        """Figures of the latest batch that the run records beside the term's value."""
        return {}


def strengths(forward: Forward) -> Tensor:
    """How far from zero each entry of the encoding's support is.

    Of positive features as they are: the gradient of |f| at 0 would lose what JumpReLU's threshold
    gets from entries at value zero.
    """
    values = forward.encoding.support.values
    return values.abs() if forward.dictionary.sparsity.signed else values


def zero(forward: Forward) -> Tensor:
    return torch.zeros((), device=forward.x_NSD.device)
