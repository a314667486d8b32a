"""A store of as many features as one likes, random but of the shape that a harvest leaves."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dictlearn.store.features import FeatureStore
from dictlearn.store.layout import Info
from dictlearn.store.windows import StoredWindows
from dictlearn.store.writer import Block, Sample, scaled, write_store

WINDOWS, CONTEXT, BEFORE, AFTER, ROWS = 512, 128, 32, 16, 512
VOCABULARY = range(300, 4000)  # of pico's: words and parts of words
TOP, INTERVALS, PER_INTERVAL, BINS, TOKENS, OTHERS = 20, 5, 4, 32, 10, 10
FIRING = 0.1  # of the tokens around a peak
LEVELS = (0.1, 0.5, 0.9)


def many_features(folder: Path, n_features: int) -> FeatureStore:
    """An SAE's store in `folder`/features: every feature fires, on text of random tokens."""
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        VOCABULARY.start, VOCABULARY.stop, (WINDOWS, CONTEXT), generator=draw, dtype=torch.int32
    )
    documents = (torch.arange(WINDOWS, dtype=torch.int32) // 4)[:, None].expand(-1, CONTEXT)
    windows = StoredWindows(tokens, documents.contiguous(), torch.arange(WINDOWS))
    nothing = torch.zeros(0, dtype=torch.int64)
    sample = Sample(
        torch.zeros(n_features + 1, dtype=torch.int64), nothing, torch.zeros(0), nothing
    )
    blocks = (
        Block(0, first, _block(min(ROWS, n_features - first), n_features, draw))
        for first in range(0, n_features, ROWS)
    )
    write_store(folder / "features", _info(n_features), windows, sample, blocks)
    return FeatureStore(folder / "features")


def _block(n: int, n_features: int, draw: torch.Generator) -> dict[str, Tensor]:
    def whole(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw)

    examples = TOP + INTERVALS * PER_INTERVAL
    activations = torch.rand(n, examples, BEFORE + 1 + AFTER, generator=draw)
    activations *= torch.rand(activations.shape, generator=draw) < FIRING
    activations[:, :, BEFORE] = torch.linspace(1, 0.1, examples)
    scales, shares = scaled(activations)
    intervals = torch.tensor(
        [-1] * TOP + [q for q in range(INTERVALS) for _ in range(PER_INTERVAL)]
    )
    ids = VOCABULARY.start + whole(len(VOCABULARY), 2, n, 1, TOKENS).int()
    effects = torch.linspace(1, 0.5, TOKENS).expand(n, 1, TOKENS)
    nearness = torch.linspace(0.9, 0.1, OTHERS).expand(n, OTHERS)
    return {
        "count": 1 + whole(5000, n),
        "maximum": torch.ones(n),
        "mean": torch.full((n,), 0.4),
        "quantiles": torch.tensor(LEVELS).expand(n, -1),
        "histogram": whole(500, n, BINS).int(),
        "examples": whole(WINDOWS * CONTEXT, n, examples),
        "example_intervals": intervals.to(torch.int8).expand(n, -1),
        "example_scales": scales,
        "example_activations": shares,
        "promoted": ids[0],
        "promoted_effects": effects,
        "suppressed": ids[1],
        "suppressed_effects": -effects,
        "neighbours": whole(n_features, n, OTHERS),
        "neighbour_cosines": nearness,
        "cofiring": whole(n_features, n, OTHERS),
        "cofiring_jaccard": nearness,
    }


def _info(n_features: int) -> Info:
    return Info(
        kind="sae",
        sources=("resid_post.1",),
        targets=("resid_post.1",),
        code_sources=1,
        n_features=n_features,
        reaches=((0,),),
        ranks=(),
        model="pico",
        revision=None,
        data={},
        dictionary_sha256="0" * 64,
        windows=WINDOWS,
        context=CONTEXT,
        documents=WINDOWS // 4,
        tokens=WINDOWS * CONTEXT,
        sampled_tokens=0,
        examples=TOP,
        intervals=INTERVALS,
        per_interval=PER_INTERVAL,
        before=BEFORE,
        after=AFTER,
        bins=BINS,
        quantile_levels=LEVELS,
        promoted=TOKENS,
        unembedding="made up",
        neighbours=OTHERS,
        cofiring="jaccard",
        directions=0,
        rows=ROWS,
        versions={},
    )
