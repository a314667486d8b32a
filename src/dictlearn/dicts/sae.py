"""Sparse autoencoder: one site, reconstructed from itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dictlearn.dicts.dictionary import Dictionary, Shape
from dictlearn.dicts.sites import feature_count, prefix_widths, site_at
from dictlearn.ranges import Count, Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def sae(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    site: str = "resid_post",
    layer: Natural | None = None,
    n_features: Count | None = None,
    expansion: Positive = 12,
    k: Positive = 32,
    unit_norm: bool = True,
    encoder_scale: Positive = 1.0,
    prefixes: Sequence[Positive] = (),
) -> Dictionary:
    """x -> code -> x. `layer` null means the middle one; `n_features` null means expansion * width.

    `k` is the number of active features per token asked for, `prefixes` the widths (or fractions of
    the features) of nested dictionaries within this one (Matryoshka, Bussmann et al. 2025).
    """
    name = site_at(site, layer, info)
    count = feature_count(n_features, expansion, info.width)
    shape = Shape(
        kind="sae",
        sources=(name,),
        targets=(name,),
        width=info.width,
        n_features=count,
        k=k,
        centre=True,
        unit_norm=unit_norm,
        encoder_scale=encoder_scale,
        prefixes=prefix_widths(prefixes, count),
    )
    return Dictionary(shape, sparsity)
