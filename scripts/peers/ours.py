"""dictlearn through its own front door: the composed configuration, the module, Lightning's Trainer.

Equalised: lr, warm-up, decay and the dead window. Kept as it comes: everything that conf/ says.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import warnings
from collections.abc import Iterator
from functools import partial
from typing import final

import lightning
import torch
from omegaconf import DictConfig
from torch import Tensor

from dictlearn.config import compose
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.types import Batch, ModelInfo
from dictlearn.verbs import build
from dictlearn.verbs.train import SAMPLE_TOKENS, fit, split
from peers.recipe import Recipe
from peers.speed import Race

RUN_DIR = tempfile.TemporaryDirectory(prefix="peers-run-")  # for what Lightning and callbacks write
KINDS = {
    "topk": ["dict=sae", "sparsity=topk"],
    "batchtopk": ["dict=sae", "sparsity=batchtopk"],
    "matryoshka": ["dict=matryoshka"],
    "jumprelu": ["dict=sae", "sparsity=jumprelu"],
}

for name in ("lightning", "lightning.pytorch"):
    logging.getLogger(name).setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning")


def configuration(kind: str, recipe: Recipe, seed: int, *overrides: str) -> DictConfig:
    """What `python train.py` would run with, the recipe's numbers put in."""
    numbers = [
        f"dict.n_features={recipe.n_features}",
        f"dict.k={recipe.k}",
        f"steps={recipe.steps}",
        f"batch_tokens={recipe.batch_tokens}",
        f"dead_after={recipe.dead_after_tokens}",
        f"optim.lr={recipe.lr}",
        # Our warm-up leaves step 0 at 1 / (warmup + 1), SAELens' at 1 / warmup.
        f"schedule.warmup={max(recipe.warmup - 1, 0)}",
        f"schedule.decay={recipe.decay}",
        f"seed={seed}",
        "trainer=cpu",
        f"run_dir={RUN_DIR.name}",
    ]
    if kind == "matryoshka":
        numbers.append(f"dict.prefixes={list(recipe.prefixes)}".replace(" ", ""))
    return compose("train", [*KINDS[kind], *numbers, *overrides])


def info(recipe: Recipe) -> ModelInfo:
    """Stands in for the language model: its activations come from a file."""
    return ModelInfo("recorded", None, "recorded", 1, recipe.width, 0, 0)


def batch_of(x_ND: Tensor) -> Batch:
    x_NSD = x_ND[:, None]
    nothing_N = torch.zeros(len(x_ND), dtype=torch.int64)
    return Batch(x_NSD, None, nothing_N, nothing_N)


@final
class Recorded:
    """A source that reads batches from an iterator."""

    reads_model, gives_windows = False, False

    def __init__(self, batches: Iterator[Batch], dictionary: Dictionary, batch_tokens: int):
        self.sources, self.targets = dictionary.sources, dictionary.targets
        self.width, self.batch_tokens = dictionary.width, batch_tokens
        self.device = torch.device("cpu")
        self._batches = batches

    def shard(self, rank: int, ranks: int) -> None:
        assert ranks == 1

    def next_batch(self) -> Batch:
        return next(self._batches)

    def sample(self, n: int) -> Batch:
        raise AssertionError("what is measured before training is measured on the first batches")

    def state(self) -> dict[str, int]:
        return {}

    def restore(self, state: dict[str, int]) -> None:
        raise AssertionError("a comparison is never resumed")


@final
class Ours:
    def __init__(self, kind: str, recipe: Recipe, seed: int, *overrides: str):
        self.recipe = recipe
        self.cfg = configuration(kind, recipe, seed, "callbacks=null", "logger=null", *overrides)
        lightning.seed_everything(seed, workers=True, verbose=False)
        self.dictionary = build.build_dictionary(self.cfg, info(recipe))
        self.training = build.build_training(self.cfg, self.dictionary)

    def train(self, batches: Iterator[Tensor]) -> OursTrained:
        first = list(itertools.islice(batches, -(-SAMPLE_TOKENS // self.recipe.batch_tokens)))
        sample = batch_of(torch.cat(first)[:SAMPLE_TOKENS])
        stream = map(batch_of, itertools.chain(first, batches))
        source = Recorded(stream, self.dictionary, self.recipe.batch_tokens)
        trainee = self.training.trainee()
        trainee.begin(sample)  # type: ignore[operator]
        fit(self.cfg, self.training, source, None)
        calibration = partial(split, sample, self.recipe.batch_tokens)
        return OursTrained(trainee.inference_form(calibration))  # type: ignore[operator]


@final
class OursTrained:
    """The inference form: what is saved in dictionary/ and what `dictlearn.load` returns."""

    def __init__(self, dictionary: Dictionary):
        self.dictionary = dictionary
        self.sparsity = dictionary.sparsity
        self.thresholded = self.sparsity.name == "jumprelu"

    def forward(self, x_ND: Tensor, threshold_scale: float = 1.0) -> tuple[Tensor, Tensor]:
        scale_SF = torch.full_like(self.dictionary.encoder.b_enc, threshold_scale)
        self.dictionary.sparsity = self.sparsity.rescaled(scale_SF).eval()
        x_NSD = x_ND[:, None]
        code = self.dictionary.encode(x_NSD)
        return self.dictionary.decode(code, x_NSD)[:, 0], code.dense()[:, 0]


def race_inside_lightning(race: Race, kind: str, recipe: Recipe, x_ND: Tensor, rounds: int) -> None:
    """Trains on one batch again and again with every default callback and the CSV logger on.

    The rivals run from inside the request for a batch, between our rounds.
    """
    steps = race.own_steps * (rounds + 1) + 2  # a round to warm up; Lightning reads one ahead
    cfg = configuration(kind, recipe, 0, f"steps={steps}", "callbacks.bar=null")
    dictionary = build.build_dictionary(cfg, info(recipe))
    training = build.build_training(cfg, dictionary)
    training.trainee().begin(batch_of(x_ND))  # type: ignore[operator]
    stream = map(batch_of, race.host(x_ND, rounds))
    fit(cfg, training, Recorded(stream, dictionary, recipe.batch_tokens), None)
