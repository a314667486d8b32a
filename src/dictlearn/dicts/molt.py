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

RANKS = (512, 256, 128, 64, 32)  # the published mixture has N, 2N, 4N, 8N and 16N transforms
FULL_WIDTH = 1024  # in narrower models ranks shrink with the width
OPEN = 1.0  # initial bias of a gate, about one standard deviation of its pre-activation


def molt(
    info: ModelInfo,
    sparsity: Callable[..., Sparsity],
    layer: Natural | None = None,
    n: Count = 4,
    ranks: Sequence[Count] | None = None,
    k: Positive = 8,
    unit_norm: bool = False,
) -> Dictionary:
    """y_hat = sum_t gate_t(x) U_t V_t x + b_dec; a feature of the code is a transform.

    There are n transforms of rank 512, 2n of 256, 4n of 128, 8n of 64 and 16n of 32; in a model
    narrower than 1024, ranks are multiplied by width / 1024. `ranks`, the rank of every transform,
    replaces these. `k` is the target number of open gates per token. Gates start open (a unit vector
    and bias 1), so that every transform learns before the sparsity closes it.
    """
    all_ranks = mixture(n, info.width) if ranks is None else tuple(ranks)
    number = layer_or_middle(layer, info)
    shape = Shape(
        kind="molt",
        sources=(f"mlp_in.{number}",),
        targets=(f"mlp_out.{number}",),
        width=info.width,
        n_features=len(all_ranks),
        k=k,
        unit_norm=unit_norm,
        link=Transforms(all_ranks),
    )
    dictionary = Dictionary(shape, sparsity)
    with torch.no_grad():
        nn.init.constant_(dictionary.encoder.b_enc, OPEN)
    return dictionary


def mixture(n: Count, width: int) -> tuple[int, ...]:
    """The ranks of the 31 n transforms, largest first; they add up to 2560 n.

    In a model narrower than 1024, every rank is multiplied by width / 1024, and is at least 1.
    """
    if n < 1:
        raise ValueError(f"dict.n={n}: want at least 1; there are 31 transforms for each")
    scale = min(1.0, width / FULL_WIDTH)
    counts = [(n << i, max(1, round(rank * scale))) for i, rank in enumerate(RANKS)]
    return tuple(rank for count, rank in counts for _ in range(count))
