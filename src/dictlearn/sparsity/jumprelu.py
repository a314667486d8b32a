"""JumpReLU (Rajamanoharan et al. 2024): every feature learns the threshold above which it fires."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from dictlearn.ranges import Positive
from dictlearn.sparsity.protocol import Encoder, Options, Sparsity, Thresholded, of_source
from dictlearn.types import Encoding

SMALLEST = 1e-6  # threshold that has a logarithm


@final
class JumpReLU(Sparsity):
    """f = pre where pre > threshold, else 0.

    The threshold's gradient is a kernel estimate over pre-activations within bandwidth / 2 of it, on
    both sides: those just below are in the encoding's support at value zero. `log_threshold` learns
    log(threshold), with the true chain rule (threshold^2 / bandwidth); Adam then moves a small
    threshold very slowly, which is why it is not the default. The bandwidth means something only
    together with the normalisation of the activations: ours have mean norm sqrt(width).
    """

    name = "jumprelu"
    selects = True

    def __init__(
        self,
        n_sources: int,
        n_features: int,
        init_threshold: Positive = 0.1,
        bandwidth: Positive = 0.2,
        log_threshold: bool = False,
    ):
        super().__init__()
        if init_threshold < 0 or (log_threshold and init_threshold == 0):
            raise ValueError(f"sparsity.init_threshold={init_threshold}: want a positive threshold")
        if bandwidth <= 0:
            raise ValueError(f"sparsity.bandwidth={bandwidth}: want a positive bandwidth")
        self.bandwidth, self.log_threshold = bandwidth, log_threshold
        self.init_threshold = init_threshold
        start = math.log(init_threshold) if log_threshold else init_threshold
        self.raw_threshold_SF = nn.Parameter(torch.full((n_sources, n_features), start))

    @property
    def threshold_SF(self) -> Tensor:
        return self.raw_threshold_SF.exp() if self.log_threshold else self.raw_threshold_SF

    def forward(self, x_NSD: Tensor, encoder: Encoder, source: int | None = None) -> Encoding:
        theta_SF = of_source(self.threshold_SF, source)
        margin = self.bandwidth / 2 if self.training else 0.0
        near = encoder.at(x_NSD, encoder.above(x_NSD, theta_SF.detach() - margin))
        theta = theta_SF.flatten()[near.pattern.columns]
        values = _Jump.apply(near.values, theta, self.bandwidth)
        support = near.with_values(values)
        code = support.where(values.detach() > 0)
        return Encoding(code, support, near.values)

    def fires(self, encoding: Encoding) -> Tensor:
        """1 where an entry of the support is above its threshold, else 0, with the kernel gradient."""
        theta = self.threshold_SF.flatten()[encoding.support.pattern.columns]
        return _Step.apply(encoding.pre, theta, self.bandwidth)

    def after_step(self) -> None:
        if not self.log_threshold:
            self.raw_threshold_SF.data.clamp_(min=0)

    def rescaled(self, factor_SF: Tensor) -> JumpReLU:
        scaled = copy.deepcopy(self)
        scaled.log_threshold = False
        scaled.raw_threshold_SF.data = (self.threshold_SF * factor_SF).detach()
        scaled.bandwidth = self.bandwidth * float(factor_SF.mean())
        return scaled

    def shifted(self, shift_SF: Tensor) -> JumpReLU:
        return self

    def as_jumprelu(self, b_enc_SF: Tensor) -> Thresholded:
        return Thresholded(torch.ones_like(b_enc_SF), b_enc_SF, self.threshold_SF)

    def starts_from(self, other: Sparsity) -> bool:
        return other.selects and not other.signed

    def start_from(
        self, other: Sparsity, b_enc_SF: Tensor, thresholds: Callable[[], Tensor]
    ) -> None:
        """Its thresholds where it has some (ReLU's are 0), else those of dict.k features per token."""
        form = other.as_jumprelu(b_enc_SF)
        theta_SF = thresholds() if form is None else form.threshold_SF
        log = self.log_threshold
        self.raw_threshold_SF.data.copy_(theta_SF.clamp_min(SMALLEST).log() if log else theta_SF)

    def inference_form(self, pre_RF: Any) -> JumpReLU:
        return self.rescaled(torch.ones(len(self.raw_threshold_SF), 1).to(self.raw_threshold_SF))

    def entries(self, k: float) -> float:
        """dict.k, which the objective leads to; entries just below a threshold are not counted."""
        return k

    def first_entries(self, k: float, n_features: int) -> float:
        """Those above the lower edge of the bandwidth around the first threshold: half of all
        features at most, or all if the edge is negative.
        """
        return n_features / 2 if self.init_threshold >= self.bandwidth / 2 else n_features

    def options(self) -> Options:
        return {"bandwidth": self.bandwidth, "log_threshold": self.log_threshold}


def _in_window(pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
    return (pre - theta).abs() < bandwidth / 2


class _Jump(torch.autograd.Function):
    """pre where pre > theta. Rajamanoharan et al. 2024, equation 11: d/d theta = -(theta/eps) K."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return torch.where(pre > theta, pre, 0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        pre, theta = ctx.saved_tensors
        window = _in_window(pre, theta, ctx.bandwidth)
        return g * (pre > theta), -(theta / ctx.bandwidth) * window * g, None


class _Step(torch.autograd.Function):
    """1 where pre > theta. Rajamanoharan et al. 2024, equation 12: d/d theta = -(1/eps) K."""

    @staticmethod
    def forward(ctx: Any, pre: Tensor, theta: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(pre, theta)
        ctx.bandwidth = bandwidth
        return (pre > theta).to(pre.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        pre, theta = ctx.saved_tensors
        window = _in_window(pre, theta, ctx.bandwidth)
        return None, -(1 / ctx.bandwidth) * window * g, None
