"""Activations and codes in the shapes that people hold them in, brought to tokens and sites."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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
    if not x.is_floating_point():
        dtype = str(x.dtype).removeprefix("torch.")
        raise ValueError(f"activations of {dtype}: want floating-point numbers")
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
    if not isinstance(code, Tensor) or not code.is_floating_point():
        what = type(code).__name__ if not isinstance(code, Tensor) else f"tensor of {code.dtype}"
        raise ValueError(
            f"a {what.replace('torch.', '')} as a code: want what encode gives, or a "
            "floating-point torch.Tensor"
        )
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


def check_one_site(x: object, sizes: Sizes) -> None:
    """ValueError where x is not [tokens, width], the activations of one site."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[1:] != (sizes.width,):
        what = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"activations of one site: want floating-point [tokens, width {sizes.width}], not {what}"
        )


def check_number(number: object, end: int, what: str) -> None:
    """ValueError where `number` is none of 0, ..., end - 1."""
    if type(number) is not int or not 0 <= number < end:
        raise ValueError(f"{what} {number!r}: want a whole number from 0 to {end - 1}")


def check_codes(codes: object, wanted: Iterable[int], t: int) -> None:
    """ValueError where not every source that target t reads has its code."""
    given = codes if isinstance(codes, Mapping) else {}
    missing = [s for s in wanted if not isinstance(given.get(s), Code)]
    if missing:
        raise ValueError(
            f"target {t} is decoded from the codes of sources {', '.join(map(str, wanted))}, by "
            f"their numbers; that of source {missing[0]} is missing"
        )


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
