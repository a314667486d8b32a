"""The gradients of an optimiser step: collected, measured, clipped, and applied or dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from dictlearn.train.fused_adam import FusedAdam
from dictlearn.train.trainee import Trainee


@final
class Gradients:
    """The gradients of several dictionaries, from the backward passes of a step to its end.

    The gradients of feature rows stay in factors if a `FusedAdam` takes them (`attach` says whether):
    it then projects, clips and normalises these rows itself. All others are tensors in `.grad`.
    Each dictionary has a norm and is clipped on its own, so that it trains as it would alone.
    """

    def __init__(
        self, trainees: Mapping[str, Trainee], optimiser: torch.optim.Optimizer, alone: bool
    ):
        """`alone`: no other process averages these gradients and no scaler multiplies them."""
        self.trainees = trainees
        self._fused: FusedAdam | None = None
        if alone and isinstance(optimiser, FusedAdam):
            rows = {n: t.dictionary.features(t.rounds_to) for n, t in trainees.items()}
            self._fused = optimiser if optimiser.attach(rows) else None

    @property
    def in_factors(self) -> bool:
        return self._fused is not None

    def collect(self) -> None:
        """Keeps rows' gradients in factors from here to `stop`; called before the forward pass."""
        if self._fused is not None:
            self._fused.collect()

    def stop(self) -> None:
        if self._fused is not None:
            self._fused.stop()

    def measure(self) -> list[Tensor]:
        """The norm of each dictionary's gradient, without the part that only changes a feature's norm."""
        self.stop()
        return [self._norm(name, trainee) for name, trainee in self.trainees.items()]

    def _norm(self, name: str, trainee: Trainee) -> Tensor:
        if not self._in_rows(trainee):
            trainee.dictionary.decoder.project_gradient()
        whole = torch.nn.utils.get_total_norm(self._whole(trainee))
        if self._fused is None:
            return whole
        return torch.hypot(whole.double(), self._fused.measure(name))

    def clip(self, name: str, norm: Tensor, size: float, most: float) -> None:
        """Scales a gradient of norm `norm` down to the norm `most`; `size` is `norm` as a number."""
        if size <= most:
            return
        scale = most / norm
        for gradient in self._whole(self.trainees[name]):
            gradient.mul_(scale)
        if self._fused is not None:
            self._fused.clip(name, most / size)

    def drop(self) -> None:
        """Discards all gradients: an optimiser leaves parameters without a gradient as they are."""
        for trainee in self.trainees.values():
            trainee.zero_grad(set_to_none=True)
        if self._fused is not None:
            self._fused.drop()

    def restore(self) -> None:
        """Restores the constraints of parameters after the optimiser's step."""
        for trainee in self.trainees.values():
            if self._in_rows(trainee):
                trainee.dictionary.sparsity.after_step()
            else:
                trainee.dictionary.after_step()

    def _in_rows(self, trainee: Trainee) -> bool:
        """Whether the optimiser projects and normalises this dictionary's decoder."""
        return self._fused is not None and bool(trainee.dictionary.decoder.features())

    def _whole(self, trainee: Trainee) -> list[Tensor]:
        """The gradients that are tensors."""
        return [
            p.grad
            for p in trainee.parameters()
            if p.grad is not None and not (self._fused is not None and self._fused.collects(p))
        ]
