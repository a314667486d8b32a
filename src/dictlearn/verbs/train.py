"""`dictlearn train`: compose, train, save, evaluate, report."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from dictlearn_kernels import dispatch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from dictlearn import escape
from dictlearn.ckpt.checkpoint_io import DictlearnCheckpointIO, read_contents
from dictlearn.ckpt.commit import check_sizes, collect_garbage, verify
from dictlearn.ckpt.dictionary import SORT as DICTIONARY
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.ckpt.diff import refuse_changed_contents
from dictlearn.ckpt.lock import run_lock, writing
from dictlearn.ckpt.resume import CHECKPOINTS, Resume, resolve_resume
from dictlearn.ckpt.signature import SIGNATURE, key_file, signed
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import layered
from dictlearn.disk.replace import check_replaceable
from dictlearn.disk.whole import write_text
from dictlearn.evals.ground_truth import mcc, mean_max_cosine
from dictlearn.evals.passes import Passes
from dictlearn.evals.record import FORMAT, versions, write_record
from dictlearn.evals.table import LONG
from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count, Positive, Seed
from dictlearn.sources.named import text_of
from dictlearn.sources.protocol import HoldsOut, KnowsNorms, KnowsTruth, MakesActivations, Source
from dictlearn.train.callbacks.peers import Peers
from dictlearn.train.callbacks.signals import Interrupted
from dictlearn.train.loader import SourceLoader
from dictlearn.train.loggers import guarded
from dictlearn.train.module import DictionaryTraining
from dictlearn.types import Batch, ModelInfo
from dictlearn.verbs import build, fingerprints, processes, trained_in, verdict
from dictlearn.verbs.asked import KEY as ASKED
from dictlearn.verbs.asked import asked
from dictlearn.verbs.continued import OF_THIS_START, continued
from dictlearn.verbs.described import beside_published, first_line
from dictlearn.verbs.evaluate import (
    BESIDE,
    evaluated,
    evaluated_rows,
    label_beside,
    refuse_unfit_rows,
    write_into,
)
from dictlearn.verbs.supply import Alone, Supply
from dictlearn.waiting import waiting_for

FIGURES = {"fvu": "FVU", "l0": "L0 per token", "mcc": "MCC"}
NEW_NAME = re.compile(r"-\d{8}-\d{6}-\d{6}$")  # the clock's, where no name was given
SAMPLE_TOKENS = 16_384  # for scales, biases and thresholds


class Keys:
    """Declares the values that the keys of conf/train.yaml take."""

    name: str
    run_dir: str
    resume: str | None
    allow_changed: list[Literal["model", "tokenizer", "data", "teacher"]]
    init: str | None
    seed: Seed
    data_seed: Seed
    steps: Count
    batch_tokens: Count
    normalise: Literal["sqrt_width", "unit", "none"]
    unit_norm: bool
    encoder_scale: Positive
    clip_norm: Positive | None
    spike_sigma: Positive | None
    dead_after: Count | None
    kernels: Literal["auto", "reference"]
    selection: Literal["auto", "float32", "bfloat16", "float16", "int16"]
    beside: bool | Literal["auto"]
    eval_tokens: Count
    eval_windows: Count


def main(cfg: DictConfig, supply: Supply | None = None) -> int:
    """Runs the configuration; returns the process's exit status. `supply` is that of a shared stream."""
    run = Path(cfg.run_dir)
    resume = begun(cfg, run)
    if resume.folder is not None:
        cfg = continued("train", cfg, resume.folder)
        refuse_fewer_steps(cfg, resume.folder)
    else:
        build.check_named_text(cfg)
    check(cfg)
    with trained_in.where_it_began(cfg, resume.folder) as checkpoint:
        return trained(cfg, resume._replace(folder=checkpoint), supply or Alone())


def trained(cfg: DictConfig, resume: Resume, supply: Supply) -> int:
    """Trains a checked configuration to its end; the process's exit status."""
    run = Path(cfg.run_dir)
    info = build.build_info(cfg)
    build.check_text(cfg, info)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)
    dictionary = build.build_dictionary(cfg, info)  # refuses what can't work, before any work
    beside = build.build_beside(cfg, dictionary)
    training = build.build_training(cfg, dictionary, beside)
    skeleton = skeleton_of(cfg, dictionary, supply)
    with dispatch.using(cfg.kernels), run_lock(run):
        first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
        if first:  # one process speaks and writes for all
            collect_garbage(run)
        for name, _ in training.named_trainees():  # refused now, not when the training is done
            check_replaceable(saved_in(run, name), DICTIONARY)
        start = build.build_start(cfg, dictionary) if resume.folder is None else None
        text = None if skeleton is None else supply.once("text", lambda: read_text(cfg, skeleton))
        contents = contents_of(cfg, text, supply)
        refuse_other_contents(cfg, resume.folder, contents)
        introduce(cfg, dictionary, info, text)
        for note in resume.notes if first else ():
            escape.say(note)
        wanted = build.runs_model(cfg) or reads_windows(training)
        lm = supply.once("model", lambda: loaded(cfg, info)) if wanted else None
        build.connect(cfg, training, lm)
        done = batches_done(cfg, resume.folder)
        new_source = partial(
            supply.source, cfg, lm or skeleton, dictionary, text and text.train, done
        )
        source = new_source()
        if isinstance(source, HoldsOut):
            refuse_unfit_rows(source, cfg.eval_tokens)
        with guarded(build.named(cfg.get("logger")), build.plain(cfg)) as loggers:
            if first:
                write_text(run / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
                trained_in.remember(run, signed(described(cfg, info)))
            if resume.folder is None:
                begin(training, source, start)
            try:
                fit(cfg, training, source, resume.folder, loggers, contents, new_source)
            except Interrupted as interrupted:
                supply.stopped(interrupted.signal, cfg)
                return int(interrupted.code or 1)
            supply.trained()
            if not first:
                return 0
            if lm is None:  # a store's activations are compared with the model's own at the end
                lm = supply.once("model", lambda: loaded(cfg, info))
            if isinstance(source, HoldsOut):
                figures = finish_on_rows(cfg, run, training, source)
            elif lm is None or text is None:
                figures = finish_without_model(cfg, run, training, source)
            else:
                figures = finish(cfg, run, training, lm, text, supply.passes())
            for logger in loggers:
                logger.finish(figures, cfg.steps, run / "dictionary")
            for sentence in verdict.sentences(training.trainee(), figures):
                escape.say(sentence)
            return int(verdict.diverged(training.trainee(), figures))


def skeleton_of(cfg: DictConfig, dictionary: Dictionary, supply: Supply) -> LanguageModel | None:
    """The model without its weights, after a check of the source's settings."""
    if not build.reads_model(cfg):
        build.check_source(cfg, None, dictionary)
        return None
    skeleton = supply.once("skeleton", lambda: build.build_skeleton(cfg))
    build.check_source(cfg, skeleton, dictionary)
    return skeleton


def loaded(cfg: DictConfig, info: ModelInfo) -> LanguageModel | None:
    """The language model, None where the run has none."""
    with waiting_for(f"{info.name}, which is being loaded"):
        return build.build_model(cfg)


def reads_windows(training: DictionaryTraining) -> bool:
    return any(trainee.objective.reads_windows for _, trainee in training.named_trainees())


def begin(training: DictionaryTraining, source: Source, start: Dictionary | None) -> None:
    """Sets scales, biases and thresholds of a new run from the source's first activations."""
    with waiting_for("the first activations, by which the dictionary is scaled"):
        sample = source.sample(SAMPLE_TOKENS)
    norms = source.norms() if isinstance(source, KnowsNorms) else None
    for name, trainee in training.named_trainees():
        own_start = start if name == "dictionary" else None
        trainee.to(source.device).begin(sample, own_start, norms)


def read_text(cfg: DictConfig, skeleton: LanguageModel) -> build.Text:
    with waiting_for(f"{text_of(cfg.data)}, which is being read and cut into tokens"):
        return build.read_text(cfg, skeleton)


def contents_of(cfg: DictConfig, text: build.Text | None, supply: Supply) -> dict[str, str]:
    """Fingerprints of what lies behind the configuration's paths."""
    if text is None:
        return build.array_contents(cfg)
    model = supply.once("model's files", lambda: fingerprints.of_model(cfg))
    tokens = supply.once("tokens", lambda: fingerprints.of_text(text.train))
    return model | fingerprints.of_teacher(cfg) | {"data": tokens}


def refuse_other_contents(
    cfg: DictConfig, checkpoint: Path | None, contents: Mapping[str, str]
) -> None:
    if checkpoint is not None:
        was = read_contents(checkpoint)
        refuse_changed_contents(was, contents, checkpoint, cfg.allow_changed)


@rank_zero_only
def introduce(
    cfg: DictConfig, dictionary: Dictionary, info: ModelInfo, text: build.Text | None
) -> None:
    """What this run is; and a word where it has far less text than published ones."""
    escape.say(first_line(cfg, dictionary, info, text))
    tokens, parameters = build.run_tokens(cfg), sum(p.numel() for p in dictionary.parameters())
    words, few = beside_published(tokens, parameters, dictionary.shape)
    if few and build.reads_model(cfg):
        escape.say(f"{tokens / parameters:.2g} tokens a parameter, {words}")


def begun(cfg: DictConfig, run: Path) -> Resume:
    """Where the run starts: afresh, or from a verified checkpoint. One folder holds one run.

    A job that Slurm has started again goes on from its checkpoint, if there is one.
    """
    restarted = int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
    if cfg.resume is None and restarted and (run / CHECKPOINTS).exists():
        cfg.resume = "auto"
    if cfg.resume is None and (run / CHECKPOINTS).exists():
        raise ValueError(
            f"run_dir={run}: holds a run already; resume=auto continues it, "
            "name=<another name> starts a new one"
        )
    if cfg.resume == "auto" and NEW_NAME.search(cfg.run_dir) and not run.exists():
        raise ValueError(f"resume=auto: want name=<the run to go on with>; there is no {run}")
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    resume = resolve_resume(cfg.resume, run, verify if first else check_sizes)
    if cfg.resume == "auto" and resume.folder is None and not says_what_to_train():
        raise ValueError(
            f"resume=auto: there is no checkpoint in {run} to go on from; say what to train, with the "
            "options of the first start, or name a run that has one"
        )
    return resume


def says_what_to_train() -> bool:
    """Whether the command line has more than which run to go on with: then a start is meant too."""
    if not HydraConfig.initialized():
        return True
    given = {text.partition("=")[0] for text in HydraConfig.get().overrides.task}
    return bool(given - set(OF_THIS_START))


def refuse_fewer_steps(cfg: DictConfig, checkpoint: Path) -> None:
    done = steps_done(checkpoint)
    if done is not None and done > cfg.steps:
        raise ValueError(f"steps={cfg.steps}: {checkpoint} has {done} behind it; want more")


def steps_done(checkpoint: Path) -> int | None:
    """The optimiser steps of a checkpoint, by its name; None if somebody has renamed it."""
    done = re.fullmatch(r"step-(\d+)", checkpoint.name)
    return int(done[1]) if done else None


def batches_done(cfg: DictConfig, checkpoint: Path | None) -> int:
    """The batches that a run has read when it begins."""
    steps = 0 if checkpoint is None else steps_done(checkpoint) or 0
    return steps * cfg.trainer.accumulate_grad_batches


def check(cfg: DictConfig) -> None:
    """Mistakes that can be seen in the configuration alone."""
    build.check_parts(cfg)
    processes.check(cfg)
    if cfg.trainer.accelerator in ("gpu", "cuda") and not torch.cuda.is_available():
        raise ValueError(
            f"trainer.accelerator={cfg.trainer.accelerator}: no CUDA device here; use trainer=cpu"
        )


def fit(
    cfg: DictConfig,
    training: DictionaryTraining,
    source: Source,
    checkpoint: Path | None,
    loggers: Sequence[Logger] = (),
    contents: Mapping[str, str] | None = None,
    new_source: Callable[[], Source] | None = None,
) -> None:
    """Trains to the last step, from a checkpoint where there is one.

    `new_source` builds sources like `source`, for a checkpoint of another number of processes.
    """
    accumulate, peers = cfg.trainer.accumulate_grad_batches, Peers()
    trainer: lightning.Trainer = instantiate(
        cfg.trainer,
        accelerator=build.accelerator(cfg),
        max_steps=cfg.steps,
        max_epochs=-1,
        default_root_dir=cfg.run_dir,
        logger=list(loggers),
        callbacks=[*build.named(cfg.get("callbacks")).values(), peers],
        strategy=processes.strategy(cfg, training),
        plugins=[
            DictlearnCheckpointIO(build.plain(cfg), contents=contents, verified=checkpoint),
            *processes.plugins(),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    with peers.guarding():
        loader = SourceLoader(source, cfg.steps * accumulate, new_source)
        trainer.fit(training, loader, ckpt_path=checkpoint)


def finish(
    cfg: DictConfig,
    run: Path,
    training: DictionaryTraining,
    lm: LanguageModel,
    text: build.Text,
    passes: Passes,
) -> dict[str, float | None]:
    """Saves the inference form, evaluates it on held-out text and writes the report; the figures.

    Raises:
        OSError: the dictionary cannot be saved. A report that cannot be is said, no more.
    """
    finished = saved(cfg, run, training, lm, text, passes)
    dictionary = finished.pop("dictionary")
    beside = {label_beside(name): one for name, one in finished.items()}
    record = evaluated(cfg, dictionary, lm, text, beside, passes)
    write_report_and_say(run, record | {ASKED: asked(cfg, own=True)})
    return record["figures"]


def write_report_and_say(run: Path, record: Mapping[str, Any]) -> None:
    """Writes figures and report; says where they are, or why they could not be written."""
    try:
        with writing(run / "report.html", "train", wait=True):
            write_into(run, record)
    except (OSError, ValueError) as error:  # the disk, or a damaged file that a report shows
        escape.say(str(error))
        escape.say(f"dictlearn.load({str(run)!r}) gives the dictionary")
    else:
        escape.say(
            f"{run / 'report.html'} shows the run; dictlearn.load({str(run)!r}) gives the dictionary"
        )


def saved(
    cfg: DictConfig,
    run: Path,
    training: DictionaryTraining,
    lm: LanguageModel,
    text: build.Text,
    passes: Passes,
) -> dict[str, Dictionary]:
    """The inference forms, with thresholds found on held-out activations, once they are saved."""
    dictionary = training.trainee().dictionary
    passes.next()
    sample = passes.once(
        lambda: ("sample", dictionary.sources, dictionary.targets),
        lambda: held_out(cfg, lm, dictionary, text).sample(SAMPLE_TOKENS),
    )
    finished, origin = {}, provenance(cfg, lm.info)
    for name, trainee in training.named_trainees():
        one = trainee.to(lm.device).inference_form(partial(split, sample, cfg.batch_tokens))
        save_dictionary(one, saved_in(run, name), origin)
        finished[name] = one
    trained_in.remember(run, origin)
    return finished


def held_out(cfg: DictConfig, lm: LanguageModel, sites: build.Sites, text: build.Text) -> Source:
    return build.build_source(cfg, lm, sites, "eval", text.held_out)


def saved_in(run: Path, name: str) -> Path:
    """The folder of a trained dictionary's inference form."""
    return run / "dictionary" if name == "dictionary" else run / BESIDE / name


def finish_without_model(
    cfg: DictConfig, run: Path, training: DictionaryTraining, source: Source
) -> dict[str, float | None]:
    """The same where a source makes its own activations; where its features are known, also how well
    they were found.
    """
    assert isinstance(source, MakesActivations)
    trainee = training.trainee().to(source.device)
    calibration, unseen = ([source.next_batch() for _ in range(8)] for _ in range(2))
    dictionary = trainee.inference_form(lambda: calibration)
    save_dictionary(dictionary, saved_in(run, "dictionary"), provenance(cfg, source.info))
    figures = measured(dictionary, unseen)
    if isinstance(source, KnowsTruth) and layered(dictionary):
        W_dec = dictionary.decoder.written(0, 0, slice(None))
        either = torch.cat([W_dec, -W_dec]) if dictionary.sparsity.signed else W_dec
        figures["mean_max_cosine"] = mean_max_cosine(either, source.truth)
        figures["mcc"] = mcc(W_dec, source.truth)
    known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    try:
        write_record(run, {"format": FORMAT, "figures": known, "versions": versions()})
    except OSError as error:
        escape.say(str(error))
    for name, value in figures.items():
        words = FIGURES.get(name, name.replace("_", " "))
        escape.say(f"{words:<20}{value:{'.4f' if abs(value) < LONG else '.2e'}}")
    escape.say(f"dictlearn.load({str(run)!r}) gives the dictionary")
    return known


def finish_on_rows(
    cfg: DictConfig, run: Path, training: DictionaryTraining, source: HoldsOut
) -> dict[str, float | None]:
    """The same where a source has held-out activations, without a text and a model."""
    origin, finished = provenance(cfg, source.info), {}
    for name, trainee in training.named_trainees():
        one = trainee.to(source.device).inference_form(
            lambda: source.held_out.batches(SAMPLE_TOKENS)
        )
        save_dictionary(one, saved_in(run, name), origin)
        finished[name] = one
    dictionary = finished.pop("dictionary")
    beside = {label_beside(name): one for name, one in finished.items()}
    record = evaluated_rows(cfg, dictionary, source, beside)
    write_report_and_say(run, record | {ASKED: asked(cfg, own=True)})
    return record["figures"]


@torch.no_grad()
def measured(dictionary: Dictionary, unseen: Sequence[Batch]) -> dict[str, float]:
    """FVU, pooled over all sites, and L0 per token."""
    x_NSD = torch.cat([batch.x_NSD for batch in unseen])
    y_NTD = torch.cat([batch.y_NTD for batch in unseen])
    code = dictionary.encode(x_NSD)
    error = (dictionary.decode(code, x_NSD) - y_NTD).double().square().sum()
    return {
        "fvu": float(error / (y_NTD.double() - y_NTD.double().mean(0)).square().sum()),
        "l0": float(code.l0_NS.double().sum(1).mean()),
    }


def split(batch: Batch, n: int) -> Iterator[Batch]:
    """The batch in pieces of n tokens."""
    for start in range(0, len(batch.x_NSD), n):
        yield batch.rows(start, start + n)


def provenance(cfg: DictConfig, info: ModelInfo) -> dict[str, Any]:
    """Where a dictionary comes from: what anybody who loads it will want to know.

    Signed, so that later verbs read the user's own text without being told again.
    """
    own = signed(described(cfg, info))
    if SIGNATURE not in own:
        escape.say(
            f"{key_file()} can't be written, so this run won't be known as yours: other verbs will want "
            "model= and data= named"
        )
    return own


def described(cfg: DictConfig, info: ModelInfo) -> dict[str, Any]:
    """The provenance before it is signed."""
    config = build.plain(cfg)
    return {
        "model": info.name,
        "revision": info.revision,
        "other_model": cfg.model.other,
        "init": cfg.init,
        "tokens": build.run_tokens(cfg),
        "normalise": cfg.normalise,
        "data": config["data"] if build.reads_model(cfg) else {},
        "sparsity": config["sparsity"],
        "objective": config["objective"],
        "seed": cfg.seed,
    }
