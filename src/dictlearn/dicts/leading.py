"""Convert activations and dense codes of the shapes that users have to [tokens, sites, ...]."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from dictlearn.types import Code
from dictlearn.words import a


class Sizes(Protocol):
    """The attributes of a dictionary that give the sizes of its inputs and codes."""

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
    """(x as [N, S, D], the leading dimensions if x had no axis of sites, else None).

    Raises:
        ValueError: the dictionary doesn't read x, or x doesn't have `n_tokens` tokens. With `strict`,
            x needs an axis of sites.
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"activations of type {type(x).__name__}: want a torch.Tensor")
    if not x.is_floating_point():
        dtype = str(x.dtype).removeprefix("torch.")
        raise ValueError(f"activations of {dtype}: want floating-point numbers")
    shape, leading = tuple(x.shape), None
    if x.ndim != 3 or shape[1] != sizes.n_sources:
        without_sites = sizes.n_sources == 1 and x.ndim > 0 and not strict
        if not without_sites or shape[-1] != sizes.width:
            raise ValueError(_refusal(shape, sizes, strict))
        leading, x = shape[:-1], x.reshape(-1, 1, sizes.width)
    elif shape[-1] != sizes.width:
        raise ValueError(_refusal(shape, sizes, strict))
    if n_tokens is not None and len(x) != n_tokens:
        raise ValueError(f"activations of {len(x)} tokens for a code of {n_tokens}")
    return x, leading


def code_of(code: Code | Tensor, sizes: Sizes) -> Code:
    """The code; a dense one, [N, S, F] or [..., F] for one source, is made sparse.

    A dense code may have negative values. If it needs a gradient, zeros are kept so that every entry
    gets one.
    """
    expected = (sizes.code_sources, sizes.n_features)
    if isinstance(code, Code):
        if (code.n_sources, code.n_features) != expected:
            raise ValueError(
                f"a code of {code.n_sources} sources of {code.n_features} features: this "
                f"{sizes.kind} has {expected[0]} of {expected[1]}"
            )
        return code
    if not isinstance(code, Tensor) or not code.is_floating_point():
        kind = type(code).__name__ if not isinstance(code, Tensor) else f"tensor of {code.dtype}"
        raise ValueError(
            f"{a(kind.replace('torch.', ''))} as a code: want the result of encode, or a "
            "floating-point torch.Tensor"
        )
    leading, dense = None, code
    if dense.ndim != 3 or dense.shape[1] != sizes.code_sources:
        without_sources = sizes.code_sources == 1 and dense.ndim > 0
        if not without_sources or dense.shape[-1] != sizes.n_features:
            raise ValueError(_code_refusal(tuple(dense.shape), sizes))
        leading, dense = tuple(dense.shape[:-1]), dense.reshape(-1, *expected)
    elif dense.shape[-1] != sizes.n_features:
        raise ValueError(_code_refusal(tuple(dense.shape), sizes))
    rows = dense.flatten(0, 1)
    kept = torch.ones_like(rows, dtype=torch.bool) if dense.requires_grad else rows != 0
    row_starts = torch.nn.functional.pad(kept.sum(1).cumsum(0), (1, 0))
    return Code(row_starts, kept.nonzero()[:, 1], rows[kept], *expected, leading)


def check_one_site(x: object, sizes: Sizes) -> None:
    """Raises ValueError unless x has the activations of one site, [tokens, width]."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.shape[1:] != (sizes.width,):
        shape = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(
            f"activations of one site: want floating-point [tokens, width {sizes.width}], not {shape}"
        )


def check_number(number: object, end: int, what: str) -> None:
    """Raises ValueError unless `number` is one of 0, ..., end - 1."""
    if type(number) is not int or not 0 <= number < end:
        raise ValueError(f"{what} {number!r}: want a whole number from 0 to {end - 1}")


def check_codes(codes: object, sources: Iterable[int], t: int) -> None:
    """Raises ValueError unless `codes` maps every source that target t reads to its code."""
    by_source = codes if isinstance(codes, Mapping) else {}
    missing = [s for s in sources if not isinstance(by_source.get(s), Code)]
    if missing:
        raise ValueError(
            f"target {t} is decoded from the codes of sources {', '.join(map(str, sources))}, by "
            f"their numbers; that of source {missing[0]} is missing"
        )


def shaped(y_NTD: Tensor, leading: tuple[int, ...] | None) -> Tensor:
    """[N, T, D] as [*leading, T, D], without T if it is 1."""
    if leading is None:
        return y_NTD
    assert math.prod(leading) == len(y_NTD)
    sites = y_NTD.shape[1:] if y_NTD.shape[1] > 1 else y_NTD.shape[2:]
    return y_NTD.reshape(*leading, *sites)


def _refusal(shape: tuple[int, ...], sizes: Sizes, strict: bool) -> str:
    expected = f"[tokens, {sizes.n_sources} sites, width {sizes.width}]"
    if sizes.n_sources == 1 and not strict:
        expected = f"[tokens, width {sizes.width}] or [batch, positions, width {sizes.width}]"
    return f"activations of shape {shape}: this {sizes.kind} reads {expected}"


def _code_refusal(shape: tuple[int, ...], sizes: Sizes) -> str:
    n, f = sizes.code_sources, sizes.n_features
    expected = f"[..., {f} features]" if n == 1 else f"[tokens, {n} sources, {f} features]"
    return f"a dense code of shape {shape}: this {sizes.kind} decodes {expected}"
