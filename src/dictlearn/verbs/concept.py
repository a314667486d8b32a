"""`dictlearn steer study=<a concept>`: rates and costs of every method, cell by cell, and the page."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from rich.text import Text

from dictlearn import escape
from dictlearn.ckpt import lock
from dictlearn.dicts.identity import sha256_of
from dictlearn.disk.errors import CONTENT_ERRORS
from dictlearn.disk.strict_json import read_json
from dictlearn.disk.whole import SaveError, write_bytes, write_json, write_text
from dictlearn.evals.report.concept import concept_page, concept_plot
from dictlearn.evals.report.theme import png
from dictlearn.explain.predicates import SLOTS, predicates
from dictlearn.interventions.concept.measure import cell
from dictlearn.interventions.concept.methods import Methods, best_feature, described, fitted
from dictlearn.interventions.concept.pareto import MEASURES, summary
from dictlearn.interventions.concept.settings import ConceptStudy
from dictlearn.interventions.concept.texts import Has, gather
from dictlearn.interventions.directions import of_feature
from dictlearn.lm.language_model import LanguageModel
from dictlearn.names import code_names, feature_named
from dictlearn.store.features import has_store, open_store
from dictlearn.store.text import token_text
from dictlearn.verbs.bars import bars
from dictlearn.verbs.opened import open_dictionary, where

RECORD, CELLS = "study.json", "cells"


def main(cfg: DictConfig, study: ConceptStudy) -> int:
    """Measures the cells that are missing, prints the areas and writes the page."""
    study = ConceptStudy(**plain(study))
    whole = None if study.check is None else _function(study.check)
    path, folder = where(cfg, "study", "features")
    if not has_store(path):
        raise ValueError(
            f"{path}: has no features/, whose text a study reads; `dictlearn features` makes it"
        )
    name = HydraConfig.get().runtime.choices.get("study") or "study"
    folder = Path(cfg.output) if cfg.output else folder / "studies" / name
    with lock.writing(folder, "steer"):
        return _measured(cfg, study, whole, folder, name)


def plain(study: ConceptStudy) -> dict[str, Any]:
    """The settings with lists for OmegaConf's."""
    return {
        key: OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        for key, value in asdict(study).items()
    }


def _function(name: str) -> Callable[[str], Any]:
    try:
        found = get_object(name)
    except Exception as error:  # whatever the module does when it is imported
        raise ValueError(f"study.check={name}: is not found ({error})") from None
    if not callable(found):
        raise ValueError(f"study.check={name}: want a function of a text")
    return found


def _measured(
    cfg: DictConfig,
    study: ConceptStudy,
    whole: Callable[[str], Any] | None,
    folder: Path,
    name: str,
) -> int:
    opened = open_dictionary(cfg, "study", "features", text=False)
    lm, dictionary = opened.lm, opened.dictionary
    most = lm.info.context_length
    if most and study.context + study.tokens >= most:
        raise ValueError(
            f"study.context={study.context}: {lm.info.name} reads at most {most} tokens"
        )
    store = open_store(opened.path, sha256_of(dictionary))
    has = has_concept(lm, study)
    texts = gather(lm, store.windows, has, study)
    feature = (
        best_feature(lm, dictionary, store, texts)
        if cfg.feature is None
        else _named(cfg, dictionary.sources, dictionary.code_sources, dictionary.n_features)
    )
    if store.feature(*feature).dead:
        raise ValueError(f"feature={store.name(*feature)}: never fired on the text of features/")
    site = of_feature(dictionary, *feature).site
    assert site is not None
    methods = Methods(lm, dictionary, store, study, feature, fitted(lm, texts, site, study))
    settings = {**plain(study), "methods": list(study.methods), "strengths": list(study.strengths)}
    start = {
        "name": name,
        "model": lm.info.name,
        "dictionary": sha256_of(dictionary),
        "site": site,
        **described(methods),
        "fitted_on": {"with": len(texts.pos), "without": len(texts.neg)},
        "settings": settings,
    }
    begin(folder, start, cfg.overwrite)
    cells = []
    listed = study.cells()
    with bars(f"Measuring {len(listed)} cells of {study.n_prompts} texts each.") as progress:
        for done, key in enumerate(listed, 1):
            file = folder / CELLS / _file_name(*key)
            measured = _read(file)
            if measured is None or not is_cell(measured, key):
                measured = cell(methods, texts, has, whole, *key)
                write_json(file, measured, ascii=False)
            cells.append(measured)
            progress("cells", done, len(listed))
    results = summary(cells, study.methods, study.wanted, study.kl_limit)
    finish(folder, {**start, "results": results})
    return 0


def has_concept(lm: LanguageModel, study: ConceptStudy) -> Has:
    """Whether a generated text has the concept: by the pattern, or by a literal of `explain`'s rules.

    Raises:
        ValueError: there is no such slot.
    """
    if study.pattern is not None:
        pattern = re.compile(study.pattern, re.MULTILINE)
        return lambda text: pattern.search(text) is not None
    names = [slot.name for slot in SLOTS]
    if study.slot not in names:
        raise ValueError(f"study.slot={study.slot}: want one of {', '.join(names)}")
    tokenizer, slot = lm.tokenizer, names.index(study.slot)
    assert tokenizer is not None, "features were found on text"
    pieces = token_text(tokenizer, range(lm.info.vocab_size))

    def has(text: str) -> bool:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens_1P = np.array([ids], np.int64)
        if tokens_1P.size == 0:
            return False
        starts_1P = np.zeros(tokens_1P.shape, np.bool_)
        starts_1P[0, 0] = True
        known = predicates(tokens_1P, starts_1P, np.ones_like(starts_1P), pieces, at_least=1)
        held = zip(known.slots.tolist(), known.values, strict=True)
        return any(one == slot and value == study.value for one, value in held)

    return has


def _named(
    cfg: DictConfig, sources: tuple[str, ...], code_sources: int, n_features: int
) -> tuple[int, int]:
    try:
        return feature_named(cfg.feature, code_names(sources, code_sources), n_features)
    except ValueError as error:
        raise ValueError(f"feature={error}") from None


# --- the folder -----------------------------------------------------------------------------------


def begin(folder: Path, start: Mapping[str, Any], overwrite: bool) -> None:
    """Writes what the study is, or goes on with the one in the folder.

    Raises:
        ValueError: another study is there, or the folder holds something else.
    """
    there = _read(folder / RECORD)
    if (
        there is not None
        and {key: there.get(key) for key in start} != dict(start)
        and not overwrite
    ):
        odd = [key for key in start if there.get(key) != start[key]]
        raise ValueError(
            f"{folder}: holds a study with another {odd[0]}; output=<another folder> keeps both, "
            "overwrite=true replaces it"
        )
    others = [path for path in folder.iterdir() if path.name != CELLS] if folder.is_dir() else []
    if there is None and others:
        raise SaveError(
            folder, FileExistsError(17, f"it holds {others[0].name}, which is no study")
        )
    if there is None or {key: there.get(key) for key in start} != dict(start):
        for file in (folder / CELLS).glob("*.json"):
            file.unlink()
        write_json(folder / RECORD, dict(start), ascii=False)


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object that was written whole; None where there is none."""
    try:
        read = read_json(path) if path.is_file() else None
    except CONTENT_ERRORS:
        return None
    return read if isinstance(read, dict) else None


def is_cell(measured: Mapping[str, Any], key: tuple[str, float | None, int]) -> bool:
    """Whether a cell's file holds the figures of that cell; another is measured again."""
    numbers = [measured.get(name) for name in MEASURES if name != "whole"]
    return (
        (measured.get("method"), measured.get("strength"), measured.get("seed")) == key
        and "whole" in measured
        and all(type(n) in (int, float) for n in [*numbers, measured["whole"] or 0])
    )


def _file_name(method: str, strength: float | None, seed: int) -> str:
    return f"{method}{'' if strength is None else f'-{strength:g}'}-seed{seed}.json"


def finish(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes record, picture and page, and prints the areas."""
    write_json(folder / RECORD, dict(record), ascii=False)
    plot = concept_plot(record)
    write_bytes(folder / "pareto.png", png(plot.draw, plot.title, plot.width))
    write_text(folder / "report.html", concept_page(record))
    console = escape.console()
    for line in lines(record):
        console.print(line, overflow="fold")
    escape.say(f"{folder}: study.json, pareto.png and report.html")


def lines(record: Mapping[str, Any]) -> Iterator[Text]:
    """What every method buys within the KL limit, the best first."""
    settings, results = record["settings"], record["results"]
    rate = results[0]["points"][0]["rate"]["mean"]
    yield Text(
        f"{record['name']}: {rate:.1%} of outputs without a change; feature {record['feature']}"
    )
    yield Text(
        f"{settings['wanted']} of it, mean gain over KL budgets up to {settings['kl_limit']:g} nats",
        style="dim",
    )
    width = max(len(row["method"]) for row in results)
    for row in results[1:]:
        area = row["area"]
        interval = f"[{area['low']:+.3f}, {area['high']:+.3f}]"
        if area["low"] == area["high"]:  # no spread that an interval could come from
            interval = "the same for every seed"
        yield Text(f"{row['method']:<{width}}  {area['mean']:+.3f}  {interval}")
