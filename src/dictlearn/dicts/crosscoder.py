"""Crosscoder (Lindsey et al. 2024): several sites share one code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Unpack

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.linked import Shared
from dictlearn.dicts.options import Options, features_of
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.sites import layers_or_all
from dictlearn.ranges import Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def crosscoder(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    sites: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    site: str = "resid_post",
    k: Positive = 32,
    norm: Literal["concat", "sum"] = "concat",
    **options: Unpack[Options],
) -> Dictionary:
    """All of `sites` -> one code -> all of `targets`.

    `sites` null means `site` of every layer, `targets` null means the same as `sites`. A feature has
    a vector for every site. `norm` is its norm in penalties and for unit_norm: `concat`, the norm of
    the concatenated vectors, or `sum`, the sum of their norms, which favours features of few sites.
    """
    read = tuple(sites or [f"{site}.{layer}" for layer in layers_or_all(None, info)])
    write = tuple(targets or read)
    for key, names in {"sites": read, "targets": write}.items():
        if len(set(names)) < len(names):
            raise ValueError(f"dict.{key}={list(names)}: want each site once")
    shape = Shape(
        kind="crosscoder",
        sources=read,
        targets=write,
        width=info.width,
        k=k,
        centre=read == write,
        **features_of(options, info.width),
        link=Shared(norm),
    )
    return Dictionary(shape, sparsity)
