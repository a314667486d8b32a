"""Adam (Kingma & Ba 2015) over the rows of weight matrices whose gradients never exist as a whole.

A pass over the rows sums a row's gradient, takes out what would only change its feature's norm,
clips it, updates moments and weights and brings the feature back to its norm, while all of it is in
the cache. Clipping by the norm of the whole gradient needs that norm first: `measure` is a pass that
sums the same rows, reads the weights and writes nothing.

On a CPU a compiled loop goes over the rows, or, where their dtype has none, torch over a few rows at
a time; on a GPU one kernel has a program for every row.
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
from dictlearn_kernels.fused_adam.types import CONCAT, FREE, SUM, Features, Step
from dictlearn_kernels.weight_grad import RowGradient

__all__ = ["CONCAT", "FREE", "SUM", "Features", "Step", "adam", "measure", "update"]


@torch.no_grad()
def measure(
    features: Features, gradients: Sequence[RowGradient | None]
) -> tuple[Tensor, Tensor | None]:
    """(squared norm of the gradient left after the projection, float64 scalar; `along` [n] or None).

    `gradients` has one for each part. `along` is what the projection takes out, per feature, in
    units that `update` understands.
    """
    return _implementation(features).measure(features, gradients)


@torch.no_grad()
def update(
    features: Features,
    gradients: Sequence[RowGradient | None],
    moments: Sequence[Moments | None],
    along_N: Tensor | None,
    steps: Sequence[Step | None],
    scale: float = 1.0,
) -> None:
    """One step of Adam, in place, of `scale` times the gradient less what `along_N` says.

    `moments` and `steps` have one for each part; parts without a gradient keep theirs and their
    weights.
    """
    chosen = _implementation(features)
    chosen.update(features, gradients, moments, along_N, steps, scale)
    for parameter, _ in features.parts:  # of a loop's or a kernel's writing torch doesn't know
        torch.autograd.graph.increment_version(parameter)


def _implementation(features: Features) -> Any:
    weights = features.parts[0][0]
    unserved = None if weights.dtype == torch.float32 else f"weights of {weights.dtype}"
    loops = weights.device.type == "cpu" and _loops_serve(features)
    chosen = dispatch.choose("fused_adam", weights, unserved, loops)
    return import_module(f"dictlearn_kernels.fused_adam.{chosen}")


def _loops_serve(features: Features) -> bool:
    from dictlearn_kernels.fused_adam import compiled

    return compiled.serves(features)
