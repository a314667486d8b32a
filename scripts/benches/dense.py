"""Dictionaries as one writes them without sparse kernels: dense codes, matmuls and autograd.

They have the parameters of ours, select by the same top-k, and are trained with the same loss (the
summed squared error), torch's fused Adam, and gradients clipped at norm 1. On a GPU they run under
bf16 autocast, which is what their authors would do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn

from benches.cases import Case
from dictlearn.types import Batch


def active(pre_NF: Tensor, k: int) -> Tensor:
    """The k largest positive entries of every row, zeros elsewhere."""
    values, features = pre_NF.relu().topk(k, dim=1)
    return torch.zeros_like(pre_NF).scatter(1, features, values)


@final
class DenseCLT(nn.Module):
    """A cross-layer transcoder; of one layer, a transcoder or, with a shared bias, an SAE."""

    def __init__(self, case: Case):
        super().__init__()
        L, F, D = case.layers, case.features, case.width
        self.k, self.centre = case.k, case.kind == "sae"
        self.W_enc = nn.Parameter(torch.randn(L, F, D) / D**0.5)
        self.b_enc = nn.Parameter(torch.zeros(L, F))
        self.W_dec = nn.ParameterList(torch.randn(t + 1, F, D) / D**0.5 for t in range(L))
        self.b_dec = nn.Parameter(torch.zeros(L, D))

    def forward(self, x_NSD: Tensor) -> Tensor:
        if self.centre:
            x_NSD = x_NSD - self.b_dec
        layers = zip(x_NSD.unbind(1), self.W_enc, self.b_enc, strict=True)
        codes = [active(x_ND @ W_FD.T + b_F, self.k) for x_ND, W_FD, b_F in layers]
        targets = []
        for W_SFD, b_D in zip(self.W_dec, self.b_dec, strict=True):
            parts = [code @ W_FD for code, W_FD in zip(codes, W_SFD, strict=False)]
            targets.append(torch.stack(parts).sum(0) + b_D)
        return torch.stack(targets, dim=1)


@final
class DenseMOLT(nn.Module):
    """Every transform on every token, gated: a product over all, as published code has it."""

    def __init__(self, case: Case):
        super().__init__()
        D = case.width
        self.k = case.k
        self.W_gate = nn.Parameter(torch.randn(case.features, D) / D**0.5)
        self.b_gate = nn.Parameter(torch.ones(case.features))
        std = [(D * rank) ** -0.25 for _, rank in case.ranks]
        self.V, self.U = (
            nn.ParameterList(
                s * torch.randn(n, rank, D) for s, (n, rank) in zip(std, case.ranks, strict=True)
            )
            for _ in range(2)
        )
        self.b_dec = nn.Parameter(torch.zeros(D))

    def forward(self, x_NSD: Tensor) -> Tensor:
        x_ND = x_NSD[:, 0]
        gates_NC = active(x_ND @ self.W_gate.T + self.b_gate, self.k)
        y_ND, first = self.b_dec, 0
        for U_CRD, V_CRD in zip(self.U, self.V, strict=True):
            gate_NC = gates_NC[:, first : first + len(U_CRD)]
            first += len(U_CRD)
            h_NCR = torch.einsum("nd,crd->ncr", x_ND, V_CRD) * gate_NC[..., None]
            y_ND = y_ND + torch.einsum("ncr,crd->nd", h_NCR, U_CRD)
        return y_ND[:, None]


def stepper(case: Case, batch: Batch) -> Callable[[], None]:
    """One whole training step, again and again on the same batch."""
    with torch.device(case.device):
        model = DenseMOLT(case) if case.kind == "molt" else DenseCLT(case)
    parameters = list(model.parameters())
    adam = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def step() -> None:
        adam.zero_grad()
        with torch.autocast(case.device, torch.bfloat16, enabled=case.device == "cuda"):
            y_hat_NTD = model(batch.x_NSD)
        error = (y_hat_NTD.float() - batch.y_NTD).square().sum() / len(batch.x_NSD)
        error.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        adam.step()

    return step
