"""The specification: whole gradients, the equations as they are printed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dictlearn_kernels.fused_adam.moments import Moments
from dictlearn_kernels.fused_adam.types import CONCAT, FREE, Features, Step, round_shadow, rows_of
from dictlearn_kernels.weight_grad import RowGradient


def measure(
    features: Features, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    g_PND, u_PND = _gradients(features, gradients), _directions(features)
    if features.norm == FREE:
        return g_PND.double().square().sum(), None
    along_N = (g_PND * u_PND).sum((0, 2)) / u_PND.square().sum((0, 2))
    return (g_PND - along_N[:, None] * u_PND).double().square().sum(), along_N


def update(
    features: Features,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float,
) -> None:
    g_PND, u_PND = _gradients(features, gradients), _directions(features)
    if along_N is not None:
        g_PND = g_PND - along_N[:, None] * u_PND
    weights = [rows_of(p)[first : first + features.n] for p, first in features.parts]
    for part, (w, stored, step) in enumerate(zip(weights, moments, steps, strict=True)):
        if gradients[part] is None or stored is None or step is None:
            continue
        g, number, low = scale * g_PND[part], step.number, features.parts[part][1]
        m, v = stored.load(low, low + features.n)
        m.copy_(step.beta1 * m + (1 - step.beta1) * g)
        v.copy_(step.beta2 * v + (1 - step.beta2) * g.square())
        m_hat = m / (1 - step.beta1**number)
        v_hat = v / (1 - step.beta2**number)
        w -= step.lr * m_hat / (v_hat.sqrt() + step.eps)
        stored.store(low, low + features.n, m, v)
    if features.norm != FREE:
        norms_PN = torch.stack([torch.linalg.vector_norm(w, dim=-1) for w in weights])
        together = norms_PN.square().sum(0).sqrt() if features.norm == CONCAT else norms_PN.sum(0)
        for w in weights:
            w *= (features.length / together)[:, None]
    round_shadow(features)


def _gradients(features: Features, gradients: Sequence[RowGradient | None]) -> Tensor:
    """All parts' gradients, [P, n, D]; zero where there is none."""
    parts = []
    for (p, first), gradient in zip(features.parts, gradients, strict=True):
        g = None if gradient is None else gradient.rows(first, first + features.n)
        parts.append(p.new_zeros(features.n, p.shape[-1]) if g is None else g)
    return torch.stack(parts)


def _directions(features: Features) -> Tensor:
    """The gradient of a feature's norm in its rows, [P, n, D]."""
    w_PND = torch.stack([rows_of(p)[first : first + features.n] for p, first in features.parts])
    if features.norm == CONCAT:
        return w_PND / features.length
    return torch.nn.functional.normalize(w_PND, dim=-1)
