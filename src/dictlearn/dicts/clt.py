"""Cross-layer transcoder (Ameisen et al. 2025): a feature writes to the MLPs of all later layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Unpack

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.linked import Lower
from dictlearn.dicts.options import Options, features_of
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.sites import Reads, mlp_sites
from dictlearn.ranges import Count, Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo


def clt(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    layers: Sequence[Natural] | None = None,
    k: Positive = 16,
    window: Count | None = None,
    tied: bool = False,
    skip: bool = False,
    reads: Reads = "mlp_in",
    **options: Unpack[Options],
) -> Dictionary:
    """mlp_in.l -> mlp_out.l, mlp_out.(l+1), ... for every layer l of `layers` (null: all).

    `n_features` and `k` count per layer. With n_features null, the number of parameters is that of
    per-layer transcoders with expansion * width features each. A feature writes to `window` layers,
    its own included (null: all later ones; 1: a transcoder per layer). `tied` makes its vectors for
    all of them the same. `skip` adds a linear path to each layer. With `reads` "mlp_norm" the sources
    are those before the gain of the norm.
    """
    sources, targets = mlp_sites(layers, info, reads)
    pairs = sum(min(window or layer, layer) for layer in range(1, len(sources) + 1))
    vectors = 2 if tied else 1 + pairs / len(sources)  # per feature, the encoder's included
    shape = Shape(
        kind="clt",
        sources=sources,
        targets=targets,
        width=info.width,
        k=k,
        skip=skip,
        **features_of(options, info.width, vectors),
        link=Lower(window, tied),
    )
    return Dictionary(shape, sparsity)
