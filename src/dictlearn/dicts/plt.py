"""Per-layer transcoders: a transcoder for every layer, trained at once on one stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Unpack

from dictlearn.dicts.diagonal import Diagonal
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.options import Options, features_of
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.sites import mlp_sites
from dictlearn.ranges import Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def plt(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    layers: Sequence[Natural] | None = None,
    k: Positive = 16,
    skip: bool = False,
    **options: Unpack[Options],
) -> Dictionary:
    """mlp_in.l -> mlp_out.l for every layer l of `layers` (null: all), with features of its own.

    `n_features` and `k` count per layer; n_features null means expansion * width.
    """
    sources, targets = mlp_sites(layers, info)
    shape = Shape(
        kind="plt",
        sources=sources,
        targets=targets,
        width=info.width,
        k=k,
        skip=skip,
        **features_of(options, info.width),
    )
    return Dictionary(shape, sparsity)


def plt_beside(shape: Shape, parameters: int, sparsity: Callable[..., Sparsity]) -> Dictionary:
    """The per-layer transcoders to compare a CLT with: its sites, its k, as many parameters.

    `parameters` counts the CLT's, its skip apart, which these have too.
    """
    per_feature = len(shape.sources) * (2 * shape.width + 1)
    count = round((parameters - len(shape.targets) * shape.width) / per_feature)
    same = replace(shape, kind="plt", link=Diagonal(), prefixes=())
    return Dictionary(replace(same, n_features=count), sparsity)
