"""The real training, for every sparsity there is: resume is bit-exact, and no entry is idle."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from ckpt_worker import corrupt, differing, final_state
from hydra.utils import instantiate
from omegaconf import DictConfig

from dictlearn import config
from dictlearn.ckpt.checkpoint_io import DictlearnCheckpointIO
from dictlearn.ckpt.codec import leaves, path_text
from dictlearn.sources.synthetic import SyntheticSource
from dictlearn.train.callbacks.checkpoint import CheckpointCallback
from dictlearn.train.loader import SourceLoader
from dictlearn.types import Batch
from dictlearn.verbs import build

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

CUT, LAST = 3, 6
REFUSED = (3, 4)  # batches with a NaN: the streak of refused steps must survive the cut
SMALL = ["source=synthetic", "name=x", f"steps={LAST}", "batch_tokens=64", "dict.n_features=96"]
SMALL += ["dict.k=4", "dead_after=200", "source.width=16", "source.n_features=32"]
SMALL += ["normalise=sqrt_width", "optim.lr=0.01"]
VARIANTS = [f"sparsity={name}" for name in config.options("sparsity")]
VARIANTS += ["dict=matryoshka"]
EMA = "callbacks=ema"


@cache
def composed(variant: str) -> DictConfig:
    return config.compose("train", [variant, *SMALL])


class Poisoned:
    """A source with a NaN in the batches REFUSED."""

    def __init__(self, inner: SyntheticSource):
        self.inner = inner
        self.sources, self.targets, self.width = inner.sources, inner.targets, inner.width
        self.batch_tokens, self.device = inner.batch_tokens, inner.device
        self.sample, self.shard = inner.sample, inner.shard
        self.drawn = 0

    def next_batch(self) -> Batch:
        batch = self.inner.next_batch()
        self.drawn += 1
        if self.drawn not in REFUSED:
            return batch
        x_NSD = batch.x_NSD.clone()
        x_NSD[0, 0, 0] = math.nan
        return batch._replace(x_NSD=x_NSD)

    def state(self) -> dict[str, int]:
        return {**self.inner.state(), "drawn": self.drawn}

    def restore(self, state: Mapping[str, int]) -> None:
        self.drawn = state["drawn"]
        self.inner.restore({key: value for key, value in state.items() if key != "drawn"})


def train(
    run: Path,
    variant: str,
    resume: Path | None = None,
    on_load: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
    accumulate: int = 1,
) -> dict[str, Any]:
    """The last checkpoint's state, after a run that also saved at CUT."""
    cfg = composed(variant)
    torch.manual_seed(0)
    place = {"lm": None, "windows": None, "batch_tokens": cfg.batch_tokens, "seed": cfg.seed}
    source = Poisoned(instantiate(cfg.source)(**place))
    dictionary = instantiate(cfg.dict)(info=source.inner.info, sparsity=instantiate(cfg.sparsity))
    training = build.build_training(cfg, dictionary)
    _, trainee = training.named_trainees()[0]
    if resume is None:
        trainee.begin(source.sample(1024))
        with torch.no_grad():  # some never fire: their count of silent tokens must survive
            dictionary.encoder.b_enc[:, :5] = -100
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=LAST,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=3,
        plugins=[DictlearnCheckpointIO(build.plain(cfg), on_load)],
        callbacks=[CheckpointCallback(run / "checkpoints", every_steps=CUT), *averaging(cfg)],
    )
    loader = SourceLoader(source, LAST * accumulate)  # type: ignore
    trainer.fit(training, loader, ckpt_path=str(resume) if resume else None)
    return final_state(run, LAST)


def averaging(cfg: DictConfig) -> list[lightning.Callback]:
    return [part for name, part in build.named(cfg.callbacks).items() if name == "ema"]


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("variant", [*VARIANTS, EMA], ids=str)
def test_resume_is_bit_exact(tmp_path, variant, accumulate):
    whole = train(tmp_path / "whole", variant, accumulate=accumulate)
    source = tmp_path / "whole" / "checkpoints" / f"step-{CUT}"
    assert differing(whole, train(tmp_path / "cut", variant, source, None, accumulate)) == []


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_resume_notices_every_entry_of_the_training(tmp_path, variant):
    """Corrupts, one by one, what the module and the loader saved: the run must come out other."""
    whole = train(tmp_path / "whole", variant)
    source = tmp_path / "whole" / "checkpoints" / f"step-{CUT}"
    saved = final_state(tmp_path / "whole", CUT)
    entries = [path for path, _ in leaves(saved) if path_text(path).startswith(OURS)]
    assert any("tokens_since_fired" in path_text(path) for path in entries)
    unnoticed = []
    for number, path in enumerate(entries):
        run = tmp_path / str(number)
        try:
            other = train(run, variant, source, lambda state, path=path: corrupt(state, path))
        except (ValueError, RuntimeError):
            continue
        if not differing(whole, other):
            unnoticed.append(path_text(path))
    assert unnoticed == []


def test_resume_notices_every_entry_of_an_average(tmp_path):
    """state_dict holds the average then; its buffers are the trained model's and not looked at."""
    whole = train(tmp_path / "whole", EMA)
    source = tmp_path / "whole" / "checkpoints" / f"step-{CUT}"
    saved = [path for path, _ in leaves(final_state(tmp_path / "whole", CUT))]
    averaged = [p for p in saved if path_text(p).startswith("averaging_state")]
    averaged += [p for p in saved if path_text(p).startswith("state_dict") and "decoder" in str(p)]
    current = [p for p in saved if path_text(p).startswith("current_model_state")]
    assert averaged and current
    for number, path in enumerate(averaged + current):
        run = tmp_path / str(number)
        try:
            other = train(run, EMA, source, lambda state, path=path: corrupt(state, path))
        except (ValueError, RuntimeError):
            continue
        assert differing(whole, other), path_text(path)


OURS = ("state_dict", "loops.fit_loop.state_dict.combined_loader")
