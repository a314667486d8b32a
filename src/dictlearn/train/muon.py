"""Muon for matrices: torch's, one matrix of a stack at a time, beside Adam for vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch

from dictlearn.ranges import Count, Fraction, NonNegative


@final
class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024): torch.optim.Muon for stacks of matrices.

    W_enc, W_dec and a MOLT's U and V are stacks over sources, targets or transforms. Each matrix [rows,
    width] of a stack is updated by itself. The size of an update is that of Adam's (`match_rms_adamw`,
    Liu et al. 2025), so `lr` means what it does there. Biases and thresholds have Adam with the same
    rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: NonNegative = 4e-3,
        momentum: Fraction = 0.95,
        nesterov: bool = True,
        ns_steps: Count = 5,
        betas: tuple[Fraction, Fraction] = (0.9, 0.999),
    ):
        super().__init__(params, {"lr": lr})
        parameters = [p for group in self.param_groups for p in group["params"]]
        # These are views: torch's optimiser writes through them into the parameters.
        self._stacks = [(p, list(p.detach().unbind())) for p in parameters if p.ndim > 2]
        self._vectors = [p for p in parameters if p.ndim <= 2]
        matrices = [matrix for _, stack in self._stacks for matrix in stack]
        self.inner: dict[str, torch.optim.Optimizer] = {}
        if matrices:
            self.inner["matrices"] = torch.optim.Muon(
                matrices,
                lr=lr,
                weight_decay=0.0,
                momentum=momentum,
                nesterov=nesterov,
                ns_steps=ns_steps,
                adjust_lr_fn="match_rms_adamw",
            )
        if self._vectors:
            self.inner["vectors"] = torch.optim.Adam(self._vectors, lr=lr, betas=betas, fused=True)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for p, stack in self._stacks:
            for i, matrix in enumerate(stack):
                matrix.grad = None if p.grad is None else p.grad[i]
        for optimiser in self.inner.values():
            optimiser.param_groups[0]["lr"] = self.param_groups[0]["lr"]
            optimiser.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        inner = {name: optimiser.state_dict() for name, optimiser in self.inner.items()}
        return {**super().state_dict(), "inner": inner}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict({k: state_dict[k] for k in ("state", "param_groups")})
        for name, optimiser in self.inner.items():
            optimiser.load_state_dict(state_dict["inner"][name])
