"""Muon (Jordan et al. 2024): momentum, orthogonalised, for the matrices inside the blocks.

In fp32: torch's own iterates in bf16, which many processors only emulate.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import final

import torch
from torch import Tensor


@torch.no_grad()
def orthogonalised(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Near U V^T, where U S V^T is the matrix's singular value decomposition: Newton-Schulz."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


@final
class Muon:
    """The optimiser, with the orthogonalisations spread over a pool of threads."""

    def __init__(self, matrices: Sequence[Tensor], momentum: float, weight_decay: float):
        self.matrices, self.momentum, self.weight_decay = matrices, momentum, weight_decay
        self.averages = [torch.zeros_like(matrix) for matrix in matrices]

    @torch.no_grad()
    def step(self, lr: float, pool: Executor) -> None:
        """One update from the matrices' gradients, with Nesterov momentum."""
        wanted = []
        for matrix, average in zip(self.matrices, self.averages, strict=True):
            assert matrix.grad is not None
            average.lerp_(matrix.grad, 1 - self.momentum)
            wanted.append(matrix.grad.lerp(average, self.momentum))
        for matrix, update in zip(self.matrices, pool.map(orthogonalised, wanted), strict=True):
            aspect = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
            matrix.mul_(1 - lr * self.weight_decay).add_(update, alpha=-lr * aspect)
