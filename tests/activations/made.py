"""Small stores of a small model's activations, as `dictlearn cache` writes them."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from dictlearn.activations.formats.dictlearn import Store
from dictlearn.activations.layout import About
from dictlearn.activations.place import LocalPlace, Place
from dictlearn.activations.protocol import Origin
from dictlearn.lm.language_model import LanguageModel, freeze
from dictlearn.sources.caching import ShardWriter, WithSpecials, begin, finish
from dictlearn.sources.reader import Reader
from tests.sources.test_live import BOS, CONTEXT, FIRST_WORD, PAD, WIDTH, WINDOWS, Numbered

SITES = ("resid_post.0", "mlp_in.1", "mlp_out.1")
VOCABULARY = FIRST_WORD + WINDOWS * CONTEXT


@cache
def model() -> LanguageModel:
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        max_position_embeddings=CONTEXT,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return freeze(Qwen3ForCausalLM(config))


def about(**options: Any) -> About:
    """30 windows of 8 tokens in 5 shards."""
    settings: dict[str, Any] = {
        "origin": Origin(),
        "sites": SITES,
        "width": WIDTH,
        "dtype": "float32",
        "order": "shuffled",
        "special": "leave_out",
        "nonfinite": "error",
        "context": CONTEXT,
        "windows": WINDOWS,
        "shard_windows": 7,
        "seed": 0,
        "vocabulary": VOCABULARY,
    }
    return About(**{**settings, **options})


def writer(place: Place, about: About, lm: LanguageModel | None = None) -> ShardWriter:
    lm = lm or model()
    text: Any = Numbered()
    specials = replace(lm, special_ids=frozenset({BOS, PAD}))
    read: Any = WithSpecials(specials, text) if about.special == "keep" else text
    reader = Reader(lm, read, list(about.sites), about.nonfinite)
    return ShardWriter(reader, text, about, place, batch_windows=3)


def made(folder: Path, shards: range | None = None, **options: Any) -> Store:
    """Writes shards, all by default, and opens what is there."""
    place, one = LocalPlace(folder), about(**options)
    begin(place, one)
    for shard in range(one.shards) if shards is None else shards:
        writer(place, one).write(shard)
    store = Store.opened(place)
    if shards is None:
        finish(place, one, one.shards, store.statistics())
    return store
