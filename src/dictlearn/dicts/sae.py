"""Sparse autoencoder: one site, reconstructed from itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Unpack

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.options import Options, features_of
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.sites import site_at
from dictlearn.ranges import Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def sae(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    site: str = "resid_post",
    layer: Natural | None = None,
    k: Positive = 32,
    **options: Unpack[Options],
) -> Dictionary:
    """x -> code -> x. `layer` null means the middle one; `n_features` null means expansion * width.

    `k` is the target number of active features per token. `prefixes` are the numbers (or fractions)
    of features in nested dictionaries within this one (Matryoshka, Bussmann et al. 2025).
    """
    name = site_at(site, layer, info)
    shape = Shape(
        kind="sae",
        sources=(name,),
        targets=(name,),
        width=info.width,
        k=k,
        centre=True,
        **features_of(options, info.width),
    )
    return Dictionary(shape, sparsity)
