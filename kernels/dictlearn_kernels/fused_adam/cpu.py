"""The passes of the optimiser by torch on a CPU, a block of rows at a time, which stays in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dictlearn_kernels.fused_adam.moments import Moments
from dictlearn_kernels.fused_adam.types import (
    FREE,
    SUM,
    FeatureRows,
    Step,
    projected,
    round_shadow,
    rows_of,
)
from dictlearn_kernels.weight_grad import RowGradient

BLOCK = (
    2**18
)  # numbers of one tensor in a block: calls are few, and a block's tensors stay in the cache


def measure(
    rows: FeatureRows, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    first = rows.parts[0][0]
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    along_N = first.new_zeros(rows.n)
    for low, high in blocks(rows):
        for (parameter, start), gradient in zip(rows.parts, gradients, strict=True):
            g = None if gradient is None else gradient.rows(start + low, start + high)
            if g is None:
                continue
            total += torch.linalg.vector_norm(g).double().square()
            if rows.norm != FREE:
                u = _direction(rows, rows_of(parameter)[start + low : start + high])
                along_N[low:high] += (g * u).sum(-1)
    return projected(rows, total, along_N)


def update(
    rows: FeatureRows,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float,
) -> None:
    for low, high in blocks(rows):
        weights = []
        for (parameter, start), gradient, stored, step in zip(
            rows.parts, gradients, moments, steps, strict=True
        ):
            w = rows_of(parameter)[start + low : start + high]
            weights.append(w)
            if gradient is None or stored is None or step is None:
                continue
            g = gradient.rows(start + low, start + high)
            if g is None:
                g = torch.zeros_like(w)
            if along_N is not None:
                g.addcmul_(_direction(rows, w), along_N[low:high, None], value=-1)
            if scale != 1.0:
                g.mul_(scale)
            first, second = stored.load(start + low, start + high)
            adam(w, g, first, second, step)
            stored.store(start + low, start + high, first, second)
        if rows.norm != FREE:
            _restore(rows, weights)
    round_shadow(rows)


def blocks(rows: FeatureRows) -> list[tuple[int, int]]:
    width = rows.parts[0][0].shape[-1]
    size = max(8, BLOCK // width)
    return [(low, min(low + size, rows.n)) for low in range(0, rows.n, size)]


def _direction(rows: FeatureRows, w: Tensor) -> Tensor:
    """The gradient of the features' norms in these rows, which the projection removes."""
    if rows.norm == SUM:
        return torch.nn.functional.normalize(w, dim=-1)
    return w if rows.length == 1.0 else w / rows.length


def _restore(rows: FeatureRows, weights: Sequence[Tensor]) -> None:
    """Brings the features of a block back to their norm. `weights` has its rows in every part."""
    norms_PN = torch.stack([torch.linalg.vector_norm(w, dim=-1) for w in weights])
    norms = norms_PN.sum(0) if rows.norm == SUM else torch.linalg.vector_norm(norms_PN, dim=0)
    norms = (norms / rows.length).clamp_min(1e-12)
    for w in weights:
        w.div_(norms[:, None])


def adam(w: Tensor, g: Tensor, first: Tensor, second: Tensor, step: Step) -> None:
    """One step by torch's own fused kernel, with the same bits as torch.optim.Adam(fused=True)."""
    # The kernel reads the step's number on its device; a copy to there would synchronise.
    number = torch.full((), step.number, dtype=torch.float32, device=w.device)
    torch.ops.aten._fused_adam_(
        [w],
        [g],
        [first],
        [second],
        [],
        [number],
        lr=step.lr,
        beta1=step.beta1,
        beta2=step.beta2,
        weight_decay=0.0,
        eps=step.eps,
        amsgrad=False,
        maximize=False,
    )
