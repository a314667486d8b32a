"""Per-layer transcoders: a transcoder for every layer, trained at once on one stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dictlearn.dicts.dictionary import Dictionary, Shape
from dictlearn.dicts.sites import feature_count, mlp_sites, prefix_widths
from dictlearn.ranges import Count, Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def plt(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    layers: Sequence[Natural] | None = None,
    n_features: Count | None = None,
    expansion: Positive = 12,
    k: Positive = 16,
    skip: bool = False,
    unit_norm: bool = True,
    encoder_scale: Positive = 1.0,
    prefixes: Sequence[Positive] = (),
) -> Dictionary:
    """mlp_in.l -> mlp_out.l for every layer l of `layers` (null: all), with features of its own.

    `n_features` and `k` count per layer; n_features null means expansion * width.
    """
    sources, targets = mlp_sites(layers, info)
    count = feature_count(n_features, expansion, info.width)
    shape = Shape(
        kind="plt",
        sources=sources,
        targets=targets,
        width=info.width,
        n_features=count,
        k=k,
        skip=skip,
        unit_norm=unit_norm,
        encoder_scale=encoder_scale,
        prefixes=prefix_widths(prefixes, count),
    )
    return Dictionary(shape, sparsity)


def plt_beside(shape: Shape, parameters: int, sparsity: Callable[..., Sparsity]) -> Dictionary:
    """The per-layer transcoders to compare a CLT with: its sites, its k, as many parameters.

    `parameters` counts the CLT's, its skip apart, which these have too.
    """
    per_feature = len(shape.sources) * (2 * shape.width + 1)
    count = round((parameters - len(shape.targets) * shape.width) / per_feature)
    same = replace(shape, kind="plt", link="diagonal", window=None, tied=False, prefixes=())
    return Dictionary(replace(same, n_features=count), sparsity)
