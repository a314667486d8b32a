"""Held-out figures of anybody's dictionary, by one definition: reference maths, pooled, float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from peers.recipe import Trained


@dataclass(frozen=True)
class Figures:
    """What a dictionary does on held-out tokens at one setting of its thresholds."""

    fvu: float  # sum ||x - x_hat||^2 / sum ||x - mean||^2 over all tokens
    l0: float  # mean active features per token
    dead: float  # share of features that fire on none of the held-out tokens
    threshold_scale: float


@torch.inference_mode()
def held_out(trained: Trained, x_ND: Tensor, scale: float = 1.0, chunk: int = 4096) -> Figures:
    """Figures over the rows of x_ND, each seen once; accumulated in float64."""
    mean_D = x_ND.double().mean(0)
    error = total = 0.0
    fired_F, active = None, 0
    for rows_ND in x_ND.split(chunk):
        y_ND, code_NF = trained.forward(rows_ND, scale)
        on_NF = code_NF > 0
        fired_F = on_NF.any(0) if fired_F is None else fired_F | on_NF.any(0)
        active += int(on_NF.sum())
        error += float((rows_ND.double() - y_ND.double()).square().sum())
        total += float((rows_ND.double() - mean_D).square().sum())
    assert fired_F is not None
    dead = 1 - float(fired_F.double().mean())
    return Figures(error / total, active / len(x_ND), dead, scale)


@torch.inference_mode()
def l0(trained: Trained, x_ND: Tensor, scale: float, chunk: int = 4096) -> float:
    """Mean active features per token at one scale of the thresholds."""
    active = sum(int((trained.forward(rows, scale)[1] > 0).sum()) for rows in x_ND.split(chunk))
    return active / len(x_ND)


def scale_for(l0_at: Callable[[float], float], target: float, tolerance: float = 1e-3) -> float:
    """The common factor on all thresholds at which L0 is `target`, to a relative `tolerance`.

    L0 never rises with the factor, so this is a bisection, on a logarithmic scale. When no factor
    between 1/64 and 64 reaches the target, the nearest end is returned: the L0 beside it tells.
    """
    low, high = 1 / 64, 64.0
    scale = 1.0
    for _ in range(40):
        found = l0_at(scale)
        if abs(found - target) <= tolerance * target:
            break
        low, high = (scale, high) if found > target else (low, scale)
        scale = (low * high) ** 0.5
    return scale


def at_equal_l0(trained: Trained, x_ND: Tensor, k: float) -> Figures:
    """Figures at L0 = k: as trained when selection is exact, else with the thresholds scaled."""
    if not trained.thresholded:
        return held_out(trained, x_ND)
    return held_out(trained, x_ND, scale_for(lambda scale: l0(trained, x_ND, scale), k))
