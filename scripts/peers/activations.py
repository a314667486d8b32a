"""The same activations in the same order for everybody, made once and read from a file.

pico's middle residual stream as our own live source streams it: shuffled over windows and tokens,
no special tokens. One factor, from the first 65,536 tokens, brings the mean norm to sqrt(D), which
is SAELens' convention (expected_average_only_in) and ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dictlearn.config import compose
from dictlearn.verbs.build import build_dictionary, build_model, build_source
from peers.recipe import Recipe

SEED = 7  # of the stream's order; the trainers' seeds differ in initialisation alone


@final
@dataclass(frozen=True)
class Activations:
    path: Path
    description: str
    width: int

    def batches(self, batch_tokens: int) -> Iterator[Tensor]:
        """Training batches [batch_tokens, D], float32, in the file's order."""
        with safe_open(self.path, framework="pt") as file:
            rows = file.get_slice("train")
            n_rows = rows.get_shape()[0]
            for start in range(0, n_rows - batch_tokens + 1, batch_tokens):
                yield rows[start : start + batch_tokens].float()

    def held_out(self) -> Tensor:
        """Tokens of documents that training never saw: [N, D], float32."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor("held_out").float()


def load_or_make(scratch: Path, recipe: Recipe, held_out: int) -> Activations:
    """The file for this recipe's number of tokens, made if it isn't in `scratch`."""
    n_train = recipe.steps * recipe.batch_tokens
    words = f"{n_train} tokens to train on, {held_out} held out, order {SEED}"
    name = hashlib.sha256(words.encode()).hexdigest()[:12]
    path = scratch / f"activations-{name}.safetensors"
    if not path.exists():
        scratch.mkdir(parents=True, exist_ok=True)
        _make(path, n_train, held_out, words)
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["about"])
    return Activations(path, about["description"], about["width"])


def _make(path: Path, n_train: int, n_held_out: int, words: str) -> None:
    cfg = compose("train", [f"seed={SEED}", "batch_tokens=8192"])
    lm = build_model(cfg)
    dictionary = build_dictionary(cfg, lm.info)
    parts = {}
    for split, n_rows in (("train", n_train), ("eval", n_held_out)):
        source = build_source(cfg, lm, dictionary, split)
        rows_ND = torch.empty(n_rows, lm.info.width)
        for start in range(0, n_rows, 8192):
            batch = source.next_batch().x_NSD[: n_rows - start, 0]
            rows_ND[start : start + len(batch)] = batch
        parts[split] = rows_ND
    scale = lm.info.width**0.5 / float(parts["train"][:65536].norm(dim=1).mean())
    site = dictionary.sources[0]
    about = {
        "description": f"{lm.info.name} {site}, {words}, scaled by {scale:.6g}",
        "width": lm.info.width,
    }
    draft = path.with_suffix(".new")
    save_file(
        {"train": parts["train"].mul_(scale), "held_out": parts["eval"].mul_(scale)},
        draft,
        {"about": json.dumps(about)},
    )
    draft.replace(path)
