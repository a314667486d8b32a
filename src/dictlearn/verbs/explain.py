"""`dictlearn explain`: descriptions of features, scored on text that the explainer never saw."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table
from rich.text import Text

from dictlearn import escape
from dictlearn.ckpt import lock
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.explain.protocol import Explainer, Feature, Material
from dictlearn.explain.sample import random_like, take_sample
from dictlearn.explain.summary import summarised, write_summary
from dictlearn.features.pages import check_pages_replaceable, write_pages
from dictlearn.lm.capture import batch_at
from dictlearn.names import code_names, feature_named
from dictlearn.ranges import Count, Fraction, Seed
from dictlearn.store.explanations import ExplanationWriter, read_explanations
from dictlearn.store.features import has_store, open_store
from dictlearn.store.text import token_text
from dictlearn.types import ModelInfo, NamedProgress
from dictlearn.verbs.bars import bars
from dictlearn.verbs.opened import Opened, OpensKeys, check_positive, open_dictionary, where
from dictlearn.verbs.reported import write_report_of
from dictlearn.words import counted

KEEPS = "feature keeps the description that it had", "features keep the description that they had"


class Keys(OpensKeys):
    """Declares the values that the keys of conf/explain.yaml take."""

    features: Sequence[int | str] | None
    limit: Count | None
    tokens: Count
    windows: Count
    at_least: Count
    threshold: Fraction
    precision: Fraction
    baseline_features: Count
    dry_run: bool
    seed: Seed


def main(cfg: DictConfig) -> int:
    """Locks the features' folder and explains."""
    if cfg.dry_run:
        return explain(cfg)
    with lock.writing(where(cfg, "explain", "explanations")[1] / "features", "explain"):
        return explain(cfg)


def explain(cfg: DictConfig) -> int:
    """Reads text, explains, scores; then writes features/explanations.jsonl and a summary."""
    explainer: Explainer = instantiate(cfg.explainer)
    folder = where(cfg, "explain", "explanations")[1] / "features"
    if has_store(folder):
        check_pages_replaceable(folder, cfg.overwrite)
    asked: list[Feature] = []

    def check(dictionary: Dictionary, info: ModelInfo) -> None:
        check_positive(dictionary, info)
        asked.extend(which(cfg, dictionary))

    opened = open_dictionary(cfg, "explain", "explanations", check)
    with bars() as progress:
        material = read_material(cfg, opened, progress)
        live = [feature for feature in asked if len(material.firings.of(*feature)[0])]
        if cfg.limit is not None and cfg.limit < len(live):
            asked = live = drawn(live, cfg.limit, cfg.seed)
        explainable = material.explainable(live, material.firings)
        escape.say(f"{explainer.estimate(material, explainable)}")
        if cfg.dry_run:
            return 0
        sha256 = sha256_of(opened.dictionary)
        writer = ExplanationWriter(folder, sha256)
        with _reports_kept(writer):
            explained = explainer.explain(
                material, explainable, progress, lambda explanation: writer.add([explanation])
            )
    summary = summarised(explainer.name, material, len(asked), live, explained)
    writer.add(explained.explanations)
    if not writer.left or writer.described:  # otherwise every description is an earlier run's
        write_summary(folder, {**summary, "dictionary": sha256})
    if material.store is not None and opened.lm.tokenizer is not None:
        explanations = read_explanations(folder, sha256)
        write_pages(
            material.store, explanations, opened.lm.tokenizer, folder, overwrite=cfg.overwrite
        )
    if (opened.folder / "figures.json").is_file():
        with lock.writing(opened.folder / "report.html", "explain", wait=True):
            write_report_of(opened.folder)  # after the pages, of which it shows some
    escape.console().print(table(summary))
    for line in filter(None, [*explained.told, _left(writer), f"The descriptions: {writer.path}"]):
        escape.say(line)
    return 0


@contextmanager
def _reports_kept(writer: ExplanationWriter) -> Iterator[None]:
    """If the run ends early, reports the descriptions so far; the explainer's answers are cached."""
    try:
        yield
    except BaseException:
        if writer.described:
            escape.say(
                f"{writer.described:,} descriptions were found before that, and are in {writer.path}; "
                "the same command goes on from there"
            )
        raise


def _left(writer: ExplanationWriter) -> str:
    if not writer.left:
        return ""
    return f"{counted(len(writer.left), *KEEPS)}: nothing was found now, or nothing that could be scored"


def which(cfg: DictConfig, dictionary: Dictionary) -> list[Feature]:
    """The features that `cfg.features` names; all if it is null."""
    names, size = code_names(dictionary.sources, dictionary.code_sources), dictionary.n_features
    if cfg.features is not None:
        return [_feature(str(name), names, size) for name in cfg.features]
    return [(source, i) for source in range(len(names)) for i in range(size)]


def drawn(features: list[Feature], n: int, seed: int) -> list[Feature]:
    """`n` random features, in order."""
    some = np.random.default_rng(seed).permutation(len(features))[:n]
    return [features[i] for i in sorted(some)]


def _feature(name: str, names: Sequence[str], size: int) -> Feature:
    try:
        return feature_named(name, names, size)
    except ValueError as error:
        raise ValueError(f"features={error}") from None


def read_material(cfg: DictConfig, opened: Opened, progress: NamedProgress) -> Material:
    """Held-out text, and the firings there of the dictionary and of a random one like it."""
    lm, dictionary, folder = opened.lm, opened.dictionary, opened.folder / "features"
    store = open_store(folder, sha256_of(dictionary)) if has_store(folder) else None
    windows = opened.windows
    if len(windows) == 0:
        raise ValueError("data: the held-out split has no text to explain features on")
    first = range(min(cfg.windows, len(windows)))
    first_BP, kept_BP = windows.window_batch(first), windows.kept(first)
    x_NSD = batch_at(lm, first_BP, kept_BP, dictionary.sources).x_NSD
    both = {"own": dictionary, "untrained": random_like(dictionary, x_NSD, cfg.seed)}
    sample, firings = take_sample(
        lm,
        both,
        windows,
        cfg.tokens,
        cfg.windows,
        partial(progress, "running the model"),
    )
    if not sample.halved_by_document:
        escape.say(
            "The text has too few documents to keep some for scoring, so half of its windows are kept."
        )
    assert lm.tokenizer is not None, "text data wants one, and has said so"
    pieces = token_text(lm.tokenizer, range(lm.info.vocab_size))
    return Material(
        sample=sample,
        firings=firings["own"],
        untrained=firings["untrained"],
        pieces=["" if i in lm.special_ids else piece for i, piece in enumerate(pieces)],
        threshold=cfg.threshold,
        precision=cfg.precision,
        at_least=cfg.at_least,
        baseline_features=cfg.baseline_features,
        folder=folder,
        store=store,
        seed=cfg.seed,
    )


def table(summary: Mapping[str, Any]) -> Table:
    """Coverage, and the distribution of scores beside the baselines."""
    shown = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1))
    names = ("", "features", "mean", "p05", "p25", "p50", "p75", "p95")
    for name in names:
        shown.add_column(name, justify="right" if name else "left", no_wrap=True)
    own = summary["scores"].get("balanced_accuracy", {})
    rows = [("balanced accuracy", {"n": summary["explained"], **own})]
    rows += [(name.replace("_", " "), b) for name, b in summary["baselines"].items()]
    for name, figures in rows:
        cells = [f"{figures[key]:.2f}" if key in figures else "" for key in names[2:]]
        shown.add_row(Text(name), f"{figures['n']:,}", *cells)
    shared = summary["described_at_balanced_accuracy"].items()
    shares = ", ".join(f"{value:.1%} at {bar}" for bar, value in shared)
    shown.caption = (
        f"of {summary['live']:,} live features: {shares}; {summary['reliable']:,} reliable "
        f"({summary['reliable_means']}); {summary['left_out']:,} left out, "
        f"{summary['left_out_because']}"
    )
    shown.caption_justify = "left"
    return shown
