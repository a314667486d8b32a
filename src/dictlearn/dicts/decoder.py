"""The diagonal decoder: every source's features write to the target of the same number."""

from __future__ import annotations

from typing import final

import torch
from dictlearn_kernels.sparse_decode import sparse_decode
from torch import Tensor, nn

from dictlearn.types import Code


@final
class DiagonalDecoder(nn.Module):
    """y_hat = f W_dec + b_dec, rows of W_dec being the dictionary's vectors; sources = targets in number.

    `unit_norm` keeps every row at norm 1: after the backward pass the gradient loses its component
    along the row, and after the optimiser's step the row is normalised (in this order: see Gao et
    al. 2024, A.3; momentum brings back a radial part, so both are needed).
    """

    def __init__(self, n_sites: int, n_features: int, width: int, unit_norm: bool):
        super().__init__()
        self.unit_norm = unit_norm
        self.W_dec = nn.Parameter(torch.empty(n_sites, n_features, width))  # SFD
        self.b_dec = nn.Parameter(torch.zeros(n_sites, width))  # TD

    def forward(self, code: Code) -> Tensor:
        """The reconstruction [N, T, D], with the bias."""
        return self.without_bias(code) + self.b_dec

    def without_bias(self, code: Code) -> Tensor:
        y_RD = sparse_decode(code.pattern, code.values, self.W_dec.flatten(0, 1))
        return y_RD.view(code.n_tokens, *self.b_dec.shape)

    def norms(self) -> Tensor:
        """Norm of everything a feature writes: [S, F]."""
        return torch.linalg.vector_norm(self.W_dec, dim=-1)

    @torch.no_grad()
    def project_gradient(self) -> None:
        """Removes from the gradient what would only change a row's norm."""
        if self.unit_norm and self.W_dec.grad is not None:
            along_SF = torch.linalg.vecdot(self.W_dec.grad, self.W_dec)
            self.W_dec.grad.addcmul_(self.W_dec, along_SF[..., None], value=-1)

    @torch.no_grad()
    def after_step(self) -> None:
        if self.unit_norm:
            self.W_dec.div_(self.norms()[..., None].clamp_min(1e-12))
