"""The three ways to fit a direction to two sets of activations: means, PCA, a logistic probe.

All work in float64 on a few hundred rows.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Method = Literal["mean", "pca", "logistic"]
METHODS: dict[str, str] = {
    "mean": "difference of means",
    "pca": "PCA of differences",
    "logistic": "logistic probe",
}
STEPS = 200  # of LBFGS, which needs some 30


class Fitted(NamedTuple):
    """A unit direction [D], and the projection at which a text counts as having the concept."""

    unit: Tensor
    threshold: Tensor

    def scores(self, x_ND: Tensor) -> Tensor:
        """Projections less the threshold, [N]: above zero is the side of `pos`."""
        return x_ND @ self.unit - self.threshold


def fit(pos_ND: Tensor, neg_ND: Tensor, method: Method) -> Fitted:
    """A direction from the mean of `neg` towards that of `pos`. The threshold lies midway.

    Raises:
        ValueError: the two sets don't differ.
    """
    unit = {"mean": _mean, "pca": _pca, "logistic": _logistic}[method](pos_ND, neg_ND)
    norm = unit.norm()
    if not bool(norm > 0) or not bool(norm.isfinite()):
        raise ValueError(
            "the activations of pos and neg are the same here; with pool=last, texts that end in the "
            "same token differ only after a block's attention"
        )
    unit = unit / norm
    return Fitted(unit, (pos_ND.mean(0) + neg_ND.mean(0)) @ unit / 2)


def scaled(fitted: Fitted, pos_ND: Tensor, neg_ND: Tensor) -> Tensor:
    """The direction as long as the two means are apart along it: [D]."""
    apart = ((pos_ND.mean(0) - neg_ND.mean(0)) @ fitted.unit).abs()
    if not bool(apart > 0):
        raise ValueError(
            "the means of pos and neg do not differ along the direction that was found"
        )
    return apart * fitted.unit


def _mean(pos_ND: Tensor, neg_ND: Tensor) -> Tensor:
    return pos_ND.mean(0) - neg_ND.mean(0)


def _pca(pos_ND: Tensor, neg_ND: Tensor) -> Tensor:
    """The first right singular vector of the pairs' differences, which are not centred.

    Most pairs decide its sign, and their sum where as many speak for either.
    """
    differences_ND = pos_ND - neg_ND
    if not bool(differences_ND.any()):
        return differences_ND[0]
    unit_D = torch.linalg.svd(differences_ND, full_matrices=False).Vh[0]
    along_N = differences_ND @ unit_D
    vote = along_N.sign().sum()
    sign = vote if bool(vote != 0) else along_N.sum()
    return -unit_D if bool(sign < 0) else unit_D


def _logistic(pos_ND: Tensor, neg_ND: Tensor) -> Tensor:
    """Weights of a logistic regression with the penalty |w|^2 / 2, as scikit-learn's at C=1.

    Activations are centred and divided by one number, the root mean square of their coordinates, so
    that the penalty means the same at every site. Each side counts half.
    """
    x_ND = torch.cat([pos_ND, neg_ND])
    x_ND = x_ND - x_ND.mean(0)
    x_ND = x_ND / x_ND.square().mean().sqrt().clamp_min(torch.finfo(x_ND.dtype).tiny)
    y_N = torch.cat([torch.ones(len(pos_ND)), torch.zeros(len(neg_ND))]).to(x_ND)
    n = len(y_N)
    weights_N = torch.where(y_N > 0, n / (2 * len(pos_ND)), n / (2 * len(neg_ND)))
    w_D = torch.zeros(x_ND.shape[1], dtype=x_ND.dtype, requires_grad=True)
    b = torch.zeros((), dtype=x_ND.dtype, requires_grad=True)
    optimiser = torch.optim.LBFGS([w_D, b], max_iter=STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            x_ND @ w_D + b, y_N, weights_N, reduction="sum"
        )
        loss = loss + w_D.square().sum() / 2
        loss.backward()
        return loss

    with torch.enable_grad():
        optimiser.step(closure)  # type: ignore[arg-type]
    return w_D.detach()
