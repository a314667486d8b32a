"""Features with gradients in factors, for every implementation of the fused optimiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from dictlearn_kernels.fused_adam.moments import FORMS
from dictlearn_kernels.fused_adam.types import FeatureRows, Step
from dictlearn_kernels.pattern import Pattern
from dictlearn_kernels.weight_grad import Product, RowGradient
from torch import Tensor

# name: (features, width, tokens, norm, length, parts, products, a dense gradient too)
CASES: dict[str, tuple[int, int, int, str, float, int, int, bool]] = {
    "free": (9, 6, 12, "free", 1.0, 1, 1, False),
    "concat": (9, 6, 12, "concat", 1.0, 1, 1, False),
    "tied": (9, 6, 12, "concat", 0.5, 1, 1, False),
    "several_targets": (7, 5, 12, "concat", 1.0, 3, 1, False),
    "sum_of_norms": (7, 5, 12, "sum", 1.0, 2, 1, False),
    "two_products": (9, 6, 12, "concat", 1.0, 1, 2, False),
    "beside_a_dense_one": (9, 6, 12, "concat", 1.0, 2, 1, True),
    "only_dense": (9, 6, 12, "free", 1.0, 1, 0, True),
    "one_of_everything": (1, 1, 1, "free", 1.0, 1, 1, False),
    "wider_than_a_block": (2, 1030, 4, "concat", 1.0, 1, 1, False),
    "a_feature_that_always_fires": (3, 4, 200, "concat", 1.0, 1, 1, False),
}
WHERE = 2  # the first of the features' rows in their parameters


@dataclass
class Case:
    features: FeatureRows
    gradients: list[RowGradient | None]
    moments: list[Any]
    steps: list[Step | None]
    state: list[dict[str, Tensor]]

    def tensors(self) -> list[Tensor]:
        return [p for p, _ in self.features.parts] + [t for s in self.state for t in s.values()]


def build(name: str, device: torch.device | str = "cpu", form: str = "float32") -> Case:
    """The same every time. Feature 0 fires on every token, the last one never."""
    n, width, n_tokens, norm, length, n_parts, n_products, dense = CASES[name]
    draws = torch.Generator().manual_seed(len(name))
    total, parts, gradients, moments, state, steps = n + WHERE + 1, [], [], [], [], []
    for part in range(n_parts):
        W = torch.randn(1, total, width, generator=draws).to(device)
        grad = torch.randn(1, total, width, generator=draws).to(device) if dense else None
        products = []
        for _ in range(n_products):
            fires = torch.rand(n_tokens, total, generator=draws) < 0.3
            fires[:, WHERE], fires[:, WHERE + n - 1] = True, n == 1
            starts = torch.nn.functional.pad(fires.sum(1).cumsum(0), (1, 0))
            pattern = Pattern(starts.to(device), fires.nonzero()[:, 1].to(device), total)
            values = torch.randn(int(starts[-1]), generator=draws).to(device)
            g = torch.randn(n_tokens, width, generator=draws).to(device)
            products.append(Product(0, pattern, values, g))
        stored = FORMS[form].zeros(W)
        first, second = torch.randn(W.shape, generator=draws), torch.rand(W.shape, generator=draws)
        parts.append((W, WHERE))
        gradients.append(RowGradient(grad, products, width))
        moments.append(FORMS[form](stored, width, 5 + part))
        if form == "8bit":
            moments[-1].store(0, total, first[0].to(device), second[0].to(device))
        else:
            stored["exp_avg"].copy_(first)
            stored["exp_avg_sq"].copy_(second)
        state.append(stored)
        steps.append(Step(3, 0.1, 0.9, 0.99, 1e-8, 5 + part))
    features = FeatureRows(tuple(parts), n, norm, length)
    normalised(features)
    return Case(features, gradients, moments, steps, state)


def normalised(features: FeatureRows) -> None:
    """Where a norm is fixed, training starts from it."""
    if features.norm == "free":
        return
    norms = torch.stack([torch.linalg.vector_norm(W[0], dim=-1) for W, _ in features.parts])
    whole = norms.sum(0) if features.norm == "sum" else norms.square().sum(0).sqrt()
    for W, _ in features.parts:
        W.mul_((features.length / whole)[None, :, None])


def assert_right_on_average(
    update: Callable[..., None], form: str, device: torch.device | str = "cpu"
) -> None:
    """100 rows of the same moments take a step, each by draws of its own: their errors cancel."""
    n, width = 100, 33
    draws = torch.Generator().manual_seed(4)
    m, v = torch.randn(width, generator=draws), torch.rand(width, generator=draws)
    p = torch.randn(1, n, width, generator=draws).to(device)
    moments = FORMS[form](FORMS[form].zeros(p), width, 0)
    moments.store(0, n, m.expand(n, width).to(device), v.expand(n, width).to(device))
    before = moments.load(0, n)
    gradient = RowGradient(torch.ones_like(p), [], width)
    step = Step(3, 0.1, 0.9, 0.99, 1e-8, 7)
    update(FeatureRows(((p, 0),), n), [gradient], [moments], None, [step])
    exact = [0.9 * before[0] + 0.1, 0.99 * before[1] + 0.01]
    for after, moment in zip(moments.load(0, n), exact, strict=True):
        errors = after - moment
        one, mean = errors.square().mean().sqrt(), errors.mean(0).square().mean().sqrt()
        # Errors of one sign, or the same in every row, would leave a mean as large as one of them.
        assert 0 < mean < 0.15 * one
