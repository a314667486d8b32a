"""The specification: dense gradients, and Adam's equations as they are printed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dictlearn_kernels.fused_adam.moments import Moments
from dictlearn_kernels.fused_adam.types import (
    CONCAT,
    FREE,
    FeatureRows,
    Step,
    round_shadow,
    rows_of,
)
from dictlearn_kernels.weight_grad import RowGradient


def measure(
    rows: FeatureRows, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    g_PND, u_PND = _gradients(rows, gradients), _directions(rows)
    if rows.norm == FREE:
        return g_PND.double().square().sum(), None
    along_N = (g_PND * u_PND).sum((0, 2)) / u_PND.square().sum((0, 2))
    return (g_PND - along_N[:, None] * u_PND).double().square().sum(), along_N


def update(
    rows: FeatureRows,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float,
) -> None:
    g_PND, u_PND = _gradients(rows, gradients), _directions(rows)
    if along_N is not None:
        g_PND = g_PND - along_N[:, None] * u_PND
    weights = [rows_of(p)[first : first + rows.n] for p, first in rows.parts]
    for part, (w, stored, step) in enumerate(zip(weights, moments, steps, strict=True)):
        if gradients[part] is None or stored is None or step is None:
            continue
        g, number, low = scale * g_PND[part], step.number, rows.parts[part][1]
        m, v = stored.load(low, low + rows.n)
        m.copy_(step.beta1 * m + (1 - step.beta1) * g)
        v.copy_(step.beta2 * v + (1 - step.beta2) * g.square())
        m_hat = m / (1 - step.beta1**number)
        v_hat = v / (1 - step.beta2**number)
        w -= step.lr * m_hat / (v_hat.sqrt() + step.eps)
        stored.store(low, low + rows.n, m, v)
    if rows.norm != FREE:
        norms_PN = torch.stack([torch.linalg.vector_norm(w, dim=-1) for w in weights])
        together = norms_PN.square().sum(0).sqrt() if rows.norm == CONCAT else norms_PN.sum(0)
        for w in weights:
            w *= (rows.length / together)[:, None]
    round_shadow(rows)


def _gradients(rows: FeatureRows, gradients: Sequence[RowGradient | None]) -> Tensor:
    """The gradients of all parts, [P, n, D]; zero where there is none."""
    parts = []
    for (p, first), gradient in zip(rows.parts, gradients, strict=True):
        g = None if gradient is None else gradient.rows(first, first + rows.n)
        parts.append(p.new_zeros(rows.n, p.shape[-1]) if g is None else g)
    return torch.stack(parts)


def _directions(rows: FeatureRows) -> Tensor:
    """The gradients of the features' norms in their rows, [P, n, D]."""
    w_PND = torch.stack([rows_of(p)[first : first + rows.n] for p, first in rows.parts])
    if rows.norm == CONCAT:
        return w_PND / rows.length
    return torch.nn.functional.normalize(w_PND, dim=-1)
