"""Transcoder (Dunefsky et al. 2024): predicts the output of an MLP from its input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.options import Options, features_of
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.sites import Reads, layer_or_middle
from dictlearn.ranges import Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def transcoder(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    layer: Natural | None = None,
    k: Positive = 32,
    skip: bool = False,
    reads: Reads = "mlp_in",
    **options: Unpack[Options],
) -> Dictionary:
    """mlp_in -> code -> mlp_out of one layer; with `skip`, also a linear map (Paulo et al. 2025).

    With `reads` "mlp_norm" the source is that before the gain of the norm.
    """
    number = layer_or_middle(layer, info)
    shape = Shape(
        kind="transcoder",
        sources=(f"{reads}.{number}",),
        targets=(f"mlp_out.{number}",),
        width=info.width,
        k=k,
        skip=skip,
        **features_of(options, info.width),
    )
    return Dictionary(shape, sparsity)
