"""MOLT (Anthropic 2025, mixtures of linear transforms): mlp_in -> mlp_out by gated low-rank maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.dicts.sites import layer_or_middle
from dictlearn.dicts.transforms import Transforms
from dictlearn.ranges import Count, Natural, Positive
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import ModelInfo

RANKS = (512, 256, 128, 64, 32)  # of the published mixture: N, 2N, 4N, 8N and 16N transforms
FULL_WIDTH = 1024  # below it, ranks shrink with the width
OPEN = 1.0  # bias of a gate at the start, about one standard deviation of what it reads


def molt(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    layer: Natural | None = None,
    n: Count = 4,
    ranks: Sequence[Count] | None = None,
    k: Positive = 8,
    unit_norm: bool = False,
) -> Dictionary:
    """y_hat = sum_t gate_t(x) U_t V_t x + b_dec; the code's features are the transforms.

    There are n transforms of rank 512, 2n of 256, 4n of 128, 8n of 64 and 16n of 32, with ranks times
    width / 1024 in a narrower model; `ranks` replaces this by the rank of every transform. `k` is the
    number of open gates per token asked for. Gates start open (a unit vector and bias 1), so that
    every transform learns before the sparsity closes it.
    """
    chosen = mixture(n, info.width) if ranks is None else tuple(ranks)
    number = layer_or_middle(layer, info)
    shape = Shape(
        kind="molt",
        sources=(f"mlp_in.{number}",),
        targets=(f"mlp_out.{number}",),
        width=info.width,
        n_features=len(chosen),
        k=k,
        unit_norm=unit_norm,
        link=Transforms(chosen),
    )
    dictionary = Dictionary(shape, sparsity)
    with torch.no_grad():
        nn.init.constant_(dictionary.encoder.b_enc, OPEN)
    return dictionary


def mixture(n: Count, width: int) -> tuple[int, ...]:
    """The rank of every transform, largest first: 31 n of them whose ranks add up to 2560 n.

    In a model narrower than 1024 every rank is times width / 1024, and at least 1.
    """
    if n < 1:
        raise ValueError(f"dict.n={n}: want at least 1; there are 31 transforms for each")
    scale = min(1.0, width / FULL_WIDTH)
    counted = [(n << i, max(1, round(rank * scale))) for i, rank in enumerate(RANKS)]
    return tuple(rank for count, rank in counted for _ in range(count))
