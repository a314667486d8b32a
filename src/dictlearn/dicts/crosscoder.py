"""Crosscoder (Lindsey et al. 2024): one code, read from several sites and written to several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from dictlearn.dicts.dictionary import Dictionary, Shape
from dictlearn.dicts.sites import feature_count, layers_or_all, prefix_widths
from dictlearn.ranges import Count, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def crosscoder(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    sites: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    site: str = "resid_post",
    n_features: Count | None = None,
    expansion: Positive = 12,
    k: Positive = 32,
    norm: Literal["concat", "sum"] = "concat",
    unit_norm: bool = True,
    encoder_scale: Positive = 1.0,
    prefixes: Sequence[Positive] = (),
) -> Dictionary:
    """All of `sites` -> one code -> all of `targets`; null: `site` of every layer, from itself.

    A feature has a vector for every site. `norm` is what its strength is measured by, in penalties
    and where norms are kept at 1: `concat`, of its vectors put together, or `sum`, of their norms,
    which favours features of few sites.
    """
    read = tuple(sites or [f"{site}.{layer}" for layer in layers_or_all(None, info)])
    write = tuple(targets or read)
    for key, names in {"sites": read, "targets": write}.items():
        if len(set(names)) < len(names):
            raise ValueError(f"dict.{key}={list(names)}: want each site once")
    count = feature_count(n_features, expansion, info.width)
    shape = Shape(
        kind="crosscoder",
        sources=read,
        targets=write,
        width=info.width,
        n_features=count,
        k=k,
        centre=read == write,
        unit_norm=unit_norm,
        encoder_scale=encoder_scale,
        prefixes=prefix_widths(prefixes, count),
        link="shared",
        norm=norm,
    )
    return Dictionary(shape, sparsity)
