"""The CPU's passes: a block of rows at a time, by a few calls of torch while it is in the cache."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dictlearn_kernels.fused_adam.moments import Moments
from dictlearn_kernels.fused_adam.types import (
    FREE,
    SUM,
    Features,
    Step,
    projected,
    round_shadow,
    rows_of,
)
from dictlearn_kernels.weight_grad import RowGradient

BLOCK = (
    2**18
)  # numbers of one tensor in a block of rows: few calls, and what a block needs stays near


def measure(
    features: Features, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    first = features.parts[0][0]
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    along_N = first.new_zeros(features.n)
    for low, high in blocks(features):
        for (parameter, start), gradient in zip(features.parts, gradients, strict=True):
            g = None if gradient is None else gradient.rows(start + low, start + high)
            if g is None:
                continue
            total += torch.linalg.vector_norm(g).double().square()
            if features.norm != FREE:
                u = _direction(features, rows_of(parameter)[start + low : start + high])
                along_N[low:high] += (g * u).sum(-1)
    return projected(features, total, along_N)


def update(
    features: Features,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float,
) -> None:
    for low, high in blocks(features):
        rows = []
        for (parameter, start), gradient, stored, step in zip(
            features.parts, gradients, moments, steps, strict=True
        ):
            w = rows_of(parameter)[start + low : start + high]
            rows.append(w)
            if gradient is None or stored is None or step is None:
                continue
            g = gradient.rows(start + low, start + high)
            if g is None:
                g = torch.zeros_like(w)
            if along_N is not None:
                g.addcmul_(_direction(features, w), along_N[low:high, None], value=-1)
            if scale != 1.0:
                g.mul_(scale)
            first, second = stored.load(start + low, start + high)
            adam(w, g, first, second, step)
            stored.store(start + low, start + high, first, second)
        if features.norm != FREE:
            _restore(features, rows)
    round_shadow(features)


def blocks(features: Features) -> list[tuple[int, int]]:
    width = features.parts[0][0].shape[-1]
    size = max(8, BLOCK // width)
    return [(low, min(low + size, features.n)) for low in range(0, features.n, size)]


def _direction(features: Features, w: Tensor) -> Tensor:
    """The gradient of the feature's norm in these rows: what the projection takes out."""
    if features.norm == SUM:
        return torch.nn.functional.normalize(w, dim=-1)
    return w if features.length == 1.0 else w / features.length


def _restore(features: Features, rows: Sequence[Tensor]) -> None:
    """Brings features back to their norm: all rows of a block, of every part."""
    norms_PN = torch.stack([torch.linalg.vector_norm(w, dim=-1) for w in rows])
    norms = norms_PN.sum(0) if features.norm == SUM else torch.linalg.vector_norm(norms_PN, dim=0)
    norms = (norms / features.length).clamp_min(1e-12)
    for w in rows:
        w.div_(norms[:, None])


def adam(w: Tensor, g: Tensor, first: Tensor, second: Tensor, step: Step) -> None:
    """torch's own fused kernel on a few rows: the same bits as torch.optim.Adam(fused=True)."""
    # It reads the count where it runs. Made there: nobody waits for a copy.
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
