"""`dictlearn features`: one pass over held-out text that shows what every feature does."""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf

from dictlearn import escape
from dictlearn.ckpt import lock
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.config import literal
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.disk import leftovers
from dictlearn.disk.replace import check_replaceable
from dictlearn.features.harvest import Harvest
from dictlearn.features.output_scores import output_scores, passes_tokens
from dictlearn.features.pages import check_pages_replaceable
from dictlearn.features.settings import Settings
from dictlearn.features.text import Text
from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count, Natural, NonNegative, ProperFraction
from dictlearn.sources.synthetic import SITE as SYNTHETIC
from dictlearn.store.explanations import read_explanations
from dictlearn.store.features import FeatureStore, has_store, open_store
from dictlearn.store.layout import FOLDER as STORE
from dictlearn.store.output_scores import write_output_scores
from dictlearn.store.writer import SORT
from dictlearn.verbs.bars import bars
from dictlearn.verbs.opened import OpensKeys, check_positive, open_dictionary, where
from dictlearn.verbs.pages import write_site
from dictlearn.words import counted

FOLDER = "features"


class Keys(OpensKeys):
    """Declares the values that the keys of conf/features.yaml take."""

    pages: bool
    output_scores: bool | Literal["only"]
    tokens: Count
    batch_windows: Count
    processes: Count
    examples: Count
    intervals: Natural
    per_interval: Natural
    before: Natural
    after: Natural
    bins: Count
    quantiles: Sequence[ProperFraction]
    promoted: Natural
    neighbours: Natural
    cofiring: Natural
    sample_tokens: Count
    sample_firings: Count
    directions: Natural
    buffer: Count
    block: Count
    checkpoint_minutes: NonNegative


def main(cfg: DictConfig) -> int:
    """Reads text, writes `features/` and prints a summary; returns the process's exit status."""
    folder = where(cfg, "describe", FOLDER)[1] / FOLDER
    with lock.writing(folder, "features"):
        leftovers.collect(folder, alone=True)  # every writer holds the lock
        if cfg.output_scores == "only":
            if cfg.pages:
                check_pages_replaceable(folder, cfg.overwrite)
            return score_again(cfg, folder)
        check_replaceable(folder / STORE, SORT, cfg.overwrite)
        if cfg.pages:
            check_pages_replaceable(folder, cfg.overwrite)
            read_explanations(folder)  # which the pages show: refused now, if they are damaged
        return write_features(cfg)


def write_features(cfg: DictConfig) -> int:
    """Does the same without locking; the caller holds the folder's lock."""
    values = literal(OmegaConf.to_container(cfg, resolve=True))  # before `opened` chooses the text
    harvest = opened(cfg)
    reading = f"Reading {len(harvest.text) * harvest.text.context:,} tokens."
    with bars(reading) as progress:
        with _others(values, cfg.processes) as others:
            readings = [harvest.read(0, cfg.processes, progress)]
            for process in others:
                process.join()
                if process.exitcode:
                    return process.exitcode
        readings += [harvest.read(rank, cfg.processes) for rank in range(1, cfg.processes)]
        harvest.finish(readings, progress, cfg.overwrite)
    store = FeatureStore(harvest.folder)
    _report(store)
    if cfg.output_scores:
        write_scores(store, harvest.lm, harvest.dictionary)
    if cfg.pages:
        write_site(store, harvest.lm.tokenizer, store.folder, cfg.overwrite)
    return 0


def score_again(cfg: DictConfig, folder: Path) -> int:
    """Adds output scores to the store in `folder`, and writes the pages again."""
    if not has_store(folder):
        raise ValueError(
            f"output_scores=only: {folder} has no features yet; output_scores=true makes both"
        )
    named = open_dictionary(cfg, "describe", FOLDER, check_positive, text=False)
    store = open_store(folder, sha256_of(named.dictionary))
    write_scores(store, named.lm, named.dictionary)
    if cfg.pages:
        write_site(store, named.lm.tokenizer, store.folder, cfg.overwrite)
    return 0


def write_scores(store: FeatureStore, lm: LanguageModel, dictionary: Dictionary) -> None:
    """Measures the output score of every feature, after a line on what that costs."""
    live = int((~store.statistics["dead"]).sum())
    cost = f"{counted(live, 'feature')}, {passes_tokens(store):,} tokens through the model"
    escape.say(f"Output scores: {cost}.")
    with bars("") as progress:
        scores_SF = output_scores(lm, dictionary, store, partial(progress, "output scores"))
    write_output_scores(store.folder, store.info, scores_SF)
    known = scores_SF[~scores_SF.isnan()]
    if len(known) == 0:
        escape.say("No feature has an output score: none promotes tokens through the unembedding.")
        return
    escape.say(
        f"{store.folder}: output scores of {len(known):,} features, median {float(known.median()):.4f}, "
        f"largest {float(known.max()):.4f}"
    )


def opened(cfg: DictConfig) -> Harvest:
    """Opens dictionary, model and text, and reads no text yet. Raises ValueError."""
    settings = Settings(**{f.name: _plain(cfg[f.name]) for f in fields(Settings)})
    path, _ = where(cfg, "describe", FOLDER)
    if load_dictionary(path).provenance.get("model") == SYNTHETIC:
        raise ValueError(f"{path}: its activations are synthetic: there is no text to look at")
    named = open_dictionary(cfg, "describe", FOLDER, check_positive)
    text = Text(named.windows, settings)
    data = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(data, dict)
    plain = {str(key): value for key, value in data.items()}
    return Harvest(named.dictionary, named.lm, text, settings, named.folder / FOLDER, plain)


@contextmanager
def _others(values: Any, processes: int) -> Iterator[list[SpawnProcess]]:
    """Starts the other processes; none outlives this one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // processes))
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=_read, args=(values, rank), daemon=True)
        for rank in range(1, processes)
    ]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            if process.is_alive():
                process.terminate()
            process.join()
        torch.set_num_threads(threads)


def _read(plain: dict[str, Any], rank: int) -> None:
    """Reads another process's share of the text, on its own device if there are several."""
    logging.getLogger("dictlearn").setLevel(logging.ERROR)  # the first process logs the same
    cfg = OmegaConf.create(plain)
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(max(1, torch.get_num_threads() // cfg.processes))
    opened(cfg).read(rank, cfg.processes)


def _report(store: FeatureStore) -> None:
    info, dead = store.info, store.statistics["dead"]
    escape.say(
        f"{store.folder}: {counted(len(store), 'feature')} on {info.tokens:,} tokens of "
        f"{counted(info.documents, 'document')}; {int(dead.sum()):,} never fired"
    )


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, ListConfig) else value
