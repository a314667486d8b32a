"""A sum whose terms' graphs exist one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from dictlearn_kernels.weight_grad import active
from torch import Tensor
from torch.autograd.function import once_differentiable

Piece = tuple[Callable[..., Tensor], tuple[Tensor, ...]]  # scalar = fn(shared, *own)


def streamed_sum(shared: Tensor, pieces: Sequence[Piece], *, few_rows: bool = False) -> Tensor:
    """sum_i fn_i(shared, *own_i), a scalar, differentiable in `shared` and in every own tensor.

    Each term's gradients are taken in the forward pass, right after the term, and its graph is let
    go: what lives on are gradients, never activations, or what an active collector of weight
    gradients has taken. An own tensor belongs to one piece. With
    `few_rows`, a gradient that is zero in most rows lives on as a sparse tensor of the others.
    """
    functions = [fn for fn, _ in pieces]
    counts = [len(own) for _, own in pieces]
    flat = [tensor for _, own in pieces for tensor in own]
    return _StreamedSum.apply(functions, counts, few_rows, shared, *flat)  # type: ignore[return-value]


class _StreamedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        functions: list,
        counts: list[int],
        few_rows: bool,
        shared: Tensor,
        *flat: Tensor,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[3:]
        leaf = shared.detach().requires_grad_(wanted[0])
        shared_gradient = torch.zeros_like(shared) if wanted[0] else None
        gradients: list[Tensor | None] = []
        total = shared.new_zeros(())
        collector = active()
        with ExitStack() as stack:
            aside = stack.enter_context(collector.held()) if collector else []
            for fn, count in zip(functions, counts, strict=True):
                first = len(gradients)
                own = [
                    tensor.detach().requires_grad_(needs)
                    for tensor, needs in zip(
                        flat[first : first + count], wanted[1 + first :][:count], strict=True
                    )
                ]
                inputs = [tensor for tensor in (leaf, *own) if tensor.requires_grad]
                with torch.set_grad_enabled(bool(inputs)):
                    value = fn(leaf, *own)
                total += value.detach()
                found = iter(
                    torch.autograd.grad(value, inputs, allow_unused=True) if inputs else ()
                )
                if shared_gradient is not None and (gradient := next(found)) is not None:
                    shared_gradient += gradient
                new = [next(found) if tensor.requires_grad else None for tensor in own]
                gradients += [_nonzero_rows(t) if few_rows and t is not None else t for t in new]
        ctx.collector, ctx.aside = collector, aside
        ctx.gradients = [shared_gradient, *gradients]
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # the largest tensors there are: used once
        if ctx.collector is not None:
            ctx.collector.release(ctx.aside, float(g))
        if float(g) != 1.0:
            gradients = [None if t is None else t.mul_(g) for t in gradients]
        return None, None, None, *gradients


def _nonzero_rows(gradient: Tensor) -> Tensor:
    """A sparse tensor of the rows that are not zero, where those are less than half."""
    used = gradient.any(-1)
    if 2 * int(used.sum()) >= used.numel() or gradient.ndim < 2:
        return gradient
    places = used.nonzero().T
    return torch.sparse_coo_tensor(places, gradient[used], gradient.shape, check_invariants=False)
