"""What is equal for everybody, and the interface every trainer is driven through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """One training run. Everything here means the same to every trainer."""

    width: int  # D
    n_features: int  # F
    k: int  # features per token: exact for topk, the mean for the others
    steps: int
    batch_tokens: int
    lr: float
    warmup: int  # steps of linear warm-up from lr / warmup
    decay: int  # last steps, linear to zero
    dead_after_tokens: int  # a feature silent for this long gets the auxiliary loss
    prefixes: tuple[int, ...]  # matryoshka: the nested widths, the last one F
    device: str = "cpu"  # cpu | cuda

    def lr_factor(self, step: int) -> float:
        """The share of `lr` that step 0, 1, ... trains with: the schedule SAELens builds."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        fall = min(1.0, (self.steps - step) / self.decay) if self.decay else 1.0
        return min(rise, fall)


class Trained(Protocol):
    """A finished dictionary in its own inference form."""

    thresholded: bool  # False: exactly k features per token, whatever the scale

    def forward(self, x_ND: Tensor, threshold_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """The reconstruction [N, D] and the code [N, F], with every threshold scaled."""
        ...


class Trainer(Protocol):
    """A trainer with its own loss, initialisation and bookkeeping."""

    def train(self, batches: Iterator[Tensor]) -> Trained:
        """Takes `recipe.steps` batches of [batch_tokens, width] and returns what came of it."""
        ...


class Stepper(Protocol):
    """A trainer that can be advanced one step at a time, for the race."""

    def step(self, x_ND: Tensor) -> None: ...
