"""Activations and codes in the shapes that people hold them in, brought to tokens and sites."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from dictlearn.types import Code


class Sizes(Protocol):
    """What of a dictionary says how large its inputs and codes are."""

    @property
    def kind(self) -> str: ...
    @property
    def n_sources(self) -> int: ...
    @property
    def code_sources(self) -> int: ...
    @property
    def n_features(self) -> int: ...
    @property
    def width(self) -> int: ...


def as_tokens(
    x: Tensor, sizes: Sizes, n_tokens: int | None = None, strict: bool = False
) -> tuple[Tensor, tuple[int, ...] | None]:
    """(x as [N, S, D], what stood before the width where x had no axis of sites, else None).

    Raises:
        ValueError: x is not what the dictionary reads, or not `n_tokens` tokens. `strict` wants an
            axis of sites.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"activations of type {type(x).__name__}: want a torch.Tensor")
    shape, leading = tuple(x.shape), None
    if x.ndim != 3 or shape[1] != sizes.n_sources:
        bare = sizes.n_sources == 1 and x.ndim > 0 and not strict
        if not bare or shape[-1] != sizes.width:
            raise ValueError(_refusal(shape, sizes, strict))
        leading, x = shape[:-1], x.reshape(-1, 1, sizes.width)
    elif shape[-1] != sizes.width:
        raise ValueError(_refusal(shape, sizes, strict))
    if n_tokens is not None and len(x) != n_tokens:
        raise ValueError(f"activations of {len(x)} tokens for a code of {n_tokens}")
    return x, leading


def code_of(code: Code | Tensor, sizes: Sizes) -> Code:
    """The code, made sparse where it is dense: [N, S, F], or [..., F] where it has one source.

    A dense code may hold any numbers, negative ones too. Where it wants a gradient every entry gets
    its own, zeros too.
    """
    wanted = (sizes.code_sources, sizes.n_features)
    if isinstance(code, Code):
        if (code.n_sources, code.n_features) != wanted:
            raise ValueError(
                f"a code of {code.n_sources} sources of {code.n_features} features: this "
                f"{sizes.kind} has {wanted[0]} of {wanted[1]}"
            )
        return code
    leading, dense = None, code
    if dense.ndim != 3 or dense.shape[1] != sizes.code_sources:
        bare = sizes.code_sources == 1 and dense.ndim > 0
        if not bare or dense.shape[-1] != sizes.n_features:
            raise ValueError(_code_refusal(tuple(dense.shape), sizes))
        leading, dense = tuple(dense.shape[:-1]), dense.reshape(-1, *wanted)
    elif dense.shape[-1] != sizes.n_features:
        raise ValueError(_code_refusal(tuple(dense.shape), sizes))
    rows = dense.flatten(0, 1)
    kept = torch.ones_like(rows, dtype=torch.bool) if dense.requires_grad else rows != 0
    row_starts = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return Code(row_starts, kept.nonzero()[:, 1], rows[kept], *wanted, leading)


def shaped(y_NTD: Tensor, leading: tuple[int, ...] | None) -> Tensor:
    """[N, T, D] as [*leading, T, D], without T where it is 1."""
    if leading is None:
        return y_NTD
    assert math.prod(leading) == len(y_NTD)
    sites = y_NTD.shape[1:] if y_NTD.shape[1] > 1 else y_NTD.shape[2:]
    return y_NTD.reshape(*leading, *sites)


def _refusal(shape: tuple[int, ...], sizes: Sizes, strict: bool) -> str:
    wanted = f"[tokens, {sizes.n_sources} sites, width {sizes.width}]"
    if sizes.n_sources == 1 and not strict:
        wanted = f"[tokens, width {sizes.width}] or [batch, positions, width {sizes.width}]"
    return f"activations of shape {shape}: this {sizes.kind} reads {wanted}"


def _code_refusal(shape: tuple[int, ...], sizes: Sizes) -> str:
    n, f = sizes.code_sources, sizes.n_features
    wanted = f"[..., {f} features]" if n == 1 else f"[tokens, {n} sources, {f} features]"
    return f"a dense code of shape {shape}: this {sizes.kind} decodes {wanted}"
