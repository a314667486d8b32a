"""Per-layer transcoders: a transcoder for every layer, all trained on the same batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Unpack

from dictlearn.dicts.diagonal import Diagonal
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.options import Options, features_of
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.sites import Reads, mlp_sites
from dictlearn.ranges import Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def plt(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    layers: Sequence[Natural] | None = None,
    k: Positive = 16,
    skip: bool = False,
    reads: Reads = "mlp_in",
    **options: Unpack[Options],
) -> Dictionary:
    """mlp_in.l -> mlp_out.l for every layer l of `layers` (null: all); each has its own features.

    `n_features` and `k` count per layer; n_features null means expansion * width. With `reads`
    "mlp_norm" the sources are those before the gain of the norm.
    """
    sources, targets = mlp_sites(layers, info, reads)
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
    """Per-layer transcoders to compare a CLT with, of the same sites, k and number of parameters.

    `parameters` is the CLT's number of parameters without its skip, which these have too.
    """
    per_feature = len(shape.sources) * (2 * shape.width + 1)
    count = round((parameters - len(shape.targets) * shape.width) / per_feature)
    same = replace(shape, kind="plt", link=Diagonal(), prefixes=())
    return Dictionary(replace(same, n_features=count), sparsity)
