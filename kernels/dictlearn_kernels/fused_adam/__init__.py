"""Adam (Kingma & Ba 2015) over the rows of weight matrices whose gradients never exist as a whole.

`update` is one pass over the rows. It sums a row's gradient, removes the part along its feature's norm,
clips it, updates moments and weights, and brings the feature back to its norm, while all of these are in
the cache. Clipping needs the norm of the whole gradient first: `measure` sums the same rows and writes
nothing.

On a CPU a compiled loop goes over float32 rows, and torch over blocks of rows in other dtypes. On a GPU
one kernel has a program for every feature.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from dictlearn_kernels import dispatch
from dictlearn_kernels.fused_adam.cpu import adam
from dictlearn_kernels.fused_adam.moments import Moments
from dictlearn_kernels.fused_adam.types import CONCAT, FREE, SUM, FeatureRows, Step
from dictlearn_kernels.weight_grad import RowGradient

__all__ = ["CONCAT", "FREE", "SUM", "FeatureRows", "Step", "adam", "measure", "update"]


@torch.no_grad()
def measure(
    rows: FeatureRows, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    """(squared norm of the gradient after the projection, float64 scalar; `along` [n] or None).

    `gradients` has one for each part. `along` is the part of the gradient that the projection removes
    from each feature, as `update` takes it.
    """
    return _implementation(rows).measure(rows, gradients)


@torch.no_grad()
def update(
    rows: FeatureRows,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float = 1.0,
) -> None:
    """One step of Adam, in place, with `scale` times the gradient after the projection by `along_N`.

    `moments` and `steps` have one for each part. Parts without a gradient keep their moments and
    weights, but for the norm.
    """
    chosen = _implementation(rows)
    chosen.update(rows, gradients, moments, along_N, steps, scale)
    for parameter, _ in rows.parts:  # torch does not see what loops and kernels write
        torch.autograd.graph.increment_version(parameter)


def _implementation(rows: FeatureRows) -> Any:
    weights = rows.parts[0][0]
    unserved = None if weights.dtype == torch.float32 else f"weights of {weights.dtype}"
    loops = weights.device.type == "cpu" and _loops_serve(rows)
    chosen = dispatch.choose("fused_adam", weights, unserved, loops)
    return import_module(f"dictlearn_kernels.fused_adam.{chosen}")


def _loops_serve(rows: FeatureRows) -> bool:
    from dictlearn_kernels.fused_adam import compiled

    return compiled.serves(rows)
