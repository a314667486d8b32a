"""Transcoder (Dunefsky et al. 2024): what the MLP reads -> what it writes, through sparse features."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dictlearn.dicts.dictionary import Dictionary, Shape
from dictlearn.dicts.sites import feature_count, layer_or_middle, prefix_widths
from dictlearn.ranges import Count, Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def transcoder(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    layer: Natural | None = None,
    n_features: Count | None = None,
    expansion: Positive = 12,
    k: Positive = 32,
    skip: bool = False,
    unit_norm: bool = True,
    encoder_scale: Positive = 1.0,
    prefixes: Sequence[Positive] = (),
) -> Dictionary:
    """mlp_in -> code -> mlp_out of one layer; with `skip`, also a linear map (Paulo et al. 2025)."""
    number = layer_or_middle(layer, info)
    count = feature_count(n_features, expansion, info.width)
    shape = Shape(
        kind="transcoder",
        sources=(f"mlp_in.{number}",),
        targets=(f"mlp_out.{number}",),
        width=info.width,
        n_features=count,
        k=k,
        skip=skip,
        unit_norm=unit_norm,
        encoder_scale=encoder_scale,
        prefixes=prefix_widths(prefixes, count),
    )
    return Dictionary(shape, sparsity)
