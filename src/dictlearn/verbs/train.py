"""`dictlearn train`: compose, train, save, evaluate, report."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from dictlearn_kernels import dispatch
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from dictlearn import escape
from dictlearn.ckpt.checkpoint_io import DictlearnCheckpointIO
from dictlearn.ckpt.commit import collect_garbage
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.ckpt.lock import run_lock
from dictlearn.ckpt.resume import CHECKPOINTS, Resume, resolve_resume
from dictlearn.ckpt.signature import signed
from dictlearn.dicts.decoder import DiagonalDecoder
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.disk.whole import write_text
from dictlearn.evals.ground_truth import mcc, mean_max_cosine
from dictlearn.evals.record import FORMAT, versions, write_record
from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count, Positive, Seed
from dictlearn.sources.protocol import Source
from dictlearn.sources.synthetic import SyntheticSource
from dictlearn.train.callbacks.signals import Interrupted
from dictlearn.train.loader import SourceLoader
from dictlearn.train.module import DictionaryTraining
from dictlearn.types import Batch, ModelInfo
from dictlearn.verbs import build
from dictlearn.verbs.continued import command, continued
from dictlearn.verbs.evaluate import BESIDE, evaluate_into, label_beside

SAMPLE_TOKENS = 16_384  # for scales, biases and thresholds


class Keys:
    """What the keys of conf/train.yaml take."""

    name: str
    run_dir: str
    resume: str | None
    init: str | None
    seed: Seed
    steps: Count
    batch_tokens: Count
    normalise: Literal["sqrt_width", "unit", "none"]
    unit_norm: bool
    encoder_scale: Positive
    clip_norm: Positive | None
    dead_after: Count | None
    kernels: Literal["auto", "reference"]
    selection: Literal["auto", "float32", "bfloat16", "float16", "int16"]
    beside: bool | Literal["auto"]
    eval_tokens: Count
    eval_windows: Count


def main(cfg: DictConfig) -> int:
    """Runs the configuration; returns the process's exit status."""
    run = Path(cfg.run_dir)
    resume = begun(cfg, run)
    if resume.folder is not None:
        cfg = continued("train", cfg, resume.folder)
    check(cfg)
    info = build.build_info(cfg)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    dictionary = build.build_dictionary(cfg, info)  # refuses what can't work, before any work
    beside = build.build_beside(cfg, dictionary)
    training = build.build_training(cfg, dictionary, beside)
    with dispatch.using(cfg.kernels), run_lock(run):
        collect_garbage(run)
        for note in resume.notes:
            say(note)
        start = build.build_start(cfg, dictionary) if resume.folder is None else None
        lm = build.build_model(cfg)
        build.connect(cfg, training, lm)
        source = build.build_source(cfg, lm, dictionary, "train")
        write_text(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
        if resume.folder is None:
            sample = source.sample(SAMPLE_TOKENS)
            for name, trainee in training.named_trainees():
                trainee.to(source.device).begin(sample, start if name == "dictionary" else None)
        try:
            fit(cfg, training, source, resume.folder)
        except Interrupted as interrupted:
            say(f"stopped by {interrupted.signal.name}; to go on: {command(cfg)}")
            return int(interrupted.code or 1)
        if rank_zero_only.rank != 0:
            return 0
        if lm is None:
            finish_without_model(cfg, run, training, source)
        else:
            finish(cfg, run, training, lm)
    return 0


def begun(cfg: DictConfig, run: Path) -> Resume:
    """Where the run starts: afresh, or from a verified checkpoint. One folder holds one run."""
    if cfg.resume is None and (run / CHECKPOINTS).exists():
        raise ValueError(
            f"run_dir={run}: holds a run already; resume=auto continues it, "
            "name=<another name> starts a new one"
        )
    return resolve_resume(cfg.resume, run)


def check(cfg: DictConfig) -> None:
    """Mistakes that can be seen in the configuration alone."""
    build.check_parts(cfg)
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.accelerator={cfg.trainer.accelerator}: no CUDA device here; use trainer=cpu"
        )


def fit(
    cfg: DictConfig, training: DictionaryTraining, source: Source, checkpoint: Path | None
) -> None:
    """Trains to the last step, from a checkpoint where there is one."""
    accumulate = cfg.trainer.accumulate_grad_batches
    trainer: lightning.Trainer = instantiate(
        cfg.trainer,
        accelerator=build.accelerator(cfg),
        max_steps=cfg.steps,
        max_epochs=-1,
        default_root_dir=cfg.run_dir,
        logger=list(build.named(cfg.get("logger")).values()),
        callbacks=list(build.named(cfg.get("callbacks")).values()),
        plugins=[DictlearnCheckpointIO(build.plain(cfg))],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(training, SourceLoader(source, cfg.steps * accumulate), ckpt_path=checkpoint)


def finish(cfg: DictConfig, run: Path, training: DictionaryTraining, lm: LanguageModel) -> None:
    """Saves the inference form, evaluates it on held-out text and writes the report."""
    held_out = build.build_source(cfg, lm, training.trainee().dictionary, "eval")
    sample = held_out.sample(SAMPLE_TOKENS)
    finished = {}
    for name, trainee in training.named_trainees():
        one = trainee.to(lm.device).inference_form(partial(split, sample, cfg.batch_tokens))
        folder = run / "dictionary" if name == "dictionary" else run / BESIDE / name
        save_dictionary(one, folder, provenance(cfg, lm.info))
        finished[name] = one
    dictionary = finished.pop("dictionary")
    beside = {label_beside(name): one for name, one in finished.items()}
    evaluate_into(run, cfg, dictionary, lm, beside)
    say(f"{run / 'report.html'} shows the run; dictlearn.load('{run}') gives the dictionary")


def finish_without_model(
    cfg: DictConfig, run: Path, training: DictionaryTraining, source: Source
) -> None:
    """The same where activations are made of known features: how well were they found?"""
    assert isinstance(source, SyntheticSource)
    trainee = training.trainee().to(source.device)
    calibration, unseen = ([source.next_batch() for _ in range(8)] for _ in range(2))
    dictionary = trainee.inference_form(lambda: calibration)
    save_dictionary(dictionary, run / "dictionary", provenance(cfg, source.info))
    figures = recovery(dictionary, unseen, source.truth)
    write_record(run, {"format": FORMAT, "figures": figures, "versions": versions()})
    for name, value in figures.items():
        say(f"{name.replace('_', ' '):<20}{value:.4f}")
    say(f"dictlearn.load('{run}') gives the dictionary")


@torch.no_grad()
def recovery(dictionary: Dictionary, unseen: list[Batch], truth: torch.Tensor) -> dict[str, float]:
    """Figures on activations whose true features [F_true, D] are known."""
    x_NSD = torch.cat([batch.x_NSD for batch in unseen])
    error = (dictionary(x_NSD) - x_NSD).double().square().sum()
    assert isinstance(dictionary.decoder, DiagonalDecoder)
    W_dec = dictionary.decoder.W_dec[0]
    return {
        "fvu": float(error / (x_NSD.double() - x_NSD.double().mean(0)).square().sum()),
        "l0": float(dictionary.encode(x_NSD).l0_NS.double().mean()),
        "mean_max_cosine": mean_max_cosine(W_dec, truth),
        "mcc": mcc(W_dec, truth),
    }


def split(batch: Batch, n: int) -> Iterator[Batch]:
    """The batch in pieces of n tokens."""
    for start in range(0, len(batch.x_NSD), n):
        stop = start + n
        x_NSD = batch.x_NSD[start:stop]
        same = batch.y_NTD is batch.x_NSD
        y_NTD = x_NSD if same else batch.y_NTD[start:stop]
        yield Batch(x_NSD, y_NTD, batch.tokens_N[start:stop], batch.positions_N[start:stop])


def provenance(cfg: DictConfig, info: ModelInfo) -> dict[str, Any]:
    """Where a dictionary comes from: what anybody who loads it will want to know.

    Signed, so that later verbs read the user's own text without being told again.
    """
    config = build.plain(cfg)
    said = {
        "model": info.name,
        "revision": info.revision,
        "other_model": cfg.model.other,
        "init": cfg.init,
        "tokens": build.run_tokens(cfg),
        "normalise": cfg.normalise,
        "data": config["data"],
        "sparsity": config["sparsity"],
        "objective": config["objective"],
        "seed": cfg.seed,
    }
    return signed(said)


def say(text: str) -> None:
    escape.say(text)
