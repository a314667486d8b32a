"""What selections are compared by."""

from __future__ import annotations

import torch
from dictlearn_kernels.selection import Selection

Operands = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # x, W, b


def dense(selection: Selection, n_columns: int) -> torch.Tensor:
    """The selected entries in their places, zero elsewhere."""
    row_starts, columns, values = selection
    n_rows = len(row_starts) - 1
    rows = torch.repeat_interleave(torch.arange(n_rows, device=columns.device), row_starts.diff())
    return values.new_zeros(n_rows, n_columns).index_put_((rows, columns), values)


def assert_same(ours: Selection, theirs: Selection) -> None:
    """The same entries in the same order, whose values may have been summed in another order."""
    for mine, other in zip(ours[:2], theirs[:2], strict=True):
        assert mine.dtype == torch.int64
        assert torch.equal(mine, other)
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-4, atol=1e-4)


def operands(rows: int, columns: int, width: int, shift: float = 0.0) -> Operands:
    """x, W and b of pre-activations around `shift`."""
    W_CD = torch.nn.functional.normalize(torch.randn(columns, width), dim=1)
    return torch.randn(rows, width), W_CD, 0.1 * torch.randn(columns) + shift


def identity(pre_RC: torch.Tensor) -> Operands:
    """x, W and b whose pre-activations are these, to the bit."""
    return pre_RC, torch.eye(pre_RC.shape[1]), torch.zeros(pre_RC.shape[1])


def on(device: torch.device, given: Operands) -> Operands:
    x, W, b = given
    return x.to(device), W.to(device), b.to(device)
