"""`dictlearn evaluate`: figures of a saved dictionary on held-out text, a table and a report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dictlearn import escape
from dictlearn.ckpt import lock
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.commands import command
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.disk.replace import is_run, run_of
from dictlearn.evals import conventions, layers
from dictlearn.evals.context import RowSource
from dictlearn.evals.evaluation import (
    Eval,
    Evaluation,
    evaluate_dictionary,
    evaluate_rows,
    needs_model,
)
from dictlearn.evals.passes import OWN, Passes
from dictlearn.evals.record import (
    HELD_OUT,
    ROWS,
    WHOLE,
    check_record_replaceable,
    record_of,
    write_record,
)
from dictlearn.evals.table import renderable
from dictlearn.lm.language_model import LanguageModel
from dictlearn.ranges import Count
from dictlearn.sources.protocol import HoldsOut
from dictlearn.verbs import build
from dictlearn.verbs.asked import KEY as ASKED
from dictlearn.verbs.asked import asked, not_a_runs_own, refuse_other_figures
from dictlearn.verbs.bars import bars
from dictlearn.verbs.opened import Opened, OpensKeys, open_dictionary, where
from dictlearn.verbs.reported import write_report_of

BESIDE = "beside"  # folder in a run's folder with the dictionaries to compare its own with


class Keys(OpensKeys):
    """Declares the values that the keys of conf/evaluate.yaml take."""

    eval_tokens: Count
    eval_windows: Count


def main(cfg: DictConfig) -> int:
    """Loads, evaluates, prints the table; returns the process's exit status."""
    build.build_evals(cfg)  # refuses what cannot be run before a model is read
    folder, options = destination(cfg), asked(cfg)
    check_destination(cfg, folder, options)
    if folder == elsewhere(cfg):
        why = not_a_runs_own(Path(cfg.run), options)
        escape.say(f"The figures go to {folder}, and {cfg.run} keeps its own: {why}.")
    with lock.writing(folder / "report.html", "evaluate"):
        opened = open_dictionary(cfg, "evaluate", "evaluations")
        beside = {name: d.to(opened.lm.device) for name, d in load_beside(opened.path).items()}
        text = build.Text(opened.windows, opened.windows, whole=True)
        if opened.split == "eval":
            text = build.Text(build.build_windows(cfg, opened.lm, "train"), opened.windows)
        if cfg.dictionary is not None:
            escape.say(conventions.described(opened.dictionary))
        record = evaluated(cfg, opened.dictionary, opened.lm, text, beside)
        if cfg.dictionary is not None:
            record |= checked_convention(opened, record["figures"])
        write_into(folder, record | {ASKED: options})
        escape.say(f"The report: {folder / 'report.html'}")
    return 0


def check_destination(cfg: DictConfig, folder: Path, options: Mapping[str, Any]) -> None:
    """Refuses to replace other figures than those that were asked for, and anything that is no figures.

    Raises:
        ValueError: figures with other options are there.
        SaveError: something else is.
    """
    if cfg.output is None and not cfg.overwrite:
        refuse_other_figures(folder, options)
    if cfg.output is None and cfg.run is not None and folder == Path(cfg.run):
        return
    if folder.resolve() != run_of(Path(cfg.run or cfg.dictionary)):
        check_record_replaceable(folder, cfg.overwrite)
    elif why := not_a_runs_own(folder, options):
        raise ValueError(
            f"output={folder}: it is the run itself, which keeps its own figures: {why}; want "
            "another folder"
        )


def checked_convention(opened: Opened, figures: Mapping[str, float | None]) -> dict[str, Any]:
    """For figures.json: the convention a dictionary is read by; the others too if its FVU is above 1.

    Says which of them would fit.
    """
    found: dict[str, Any] = {"convention": conventions.described(opened.dictionary)}
    fvu = figures.get("fvu")
    if fvu is not None and fvu > 1:
        others = conventions.others(opened.dictionary, opened.lm, opened.windows)
        escape.say(conventions.verdict(fvu, others))
        found["other_conventions"] = {
            one.words: {"fvu": one.fvu if math.isfinite(one.fvu) else None, "l0": one.l0}
            for one in others
        }
    return found


def destination(cfg: DictConfig) -> Path:
    """The folder for figures and report: a run's folder only for what the run's own figures are of."""
    _, folder = where(cfg, "evaluate", "evaluations")
    return elsewhere(cfg) or folder


def elsewhere(cfg: DictConfig) -> Path | None:
    """The folder for figures of a run that are not its own; None for all others."""
    if cfg.output is not None or cfg.run is None or not not_a_runs_own(Path(cfg.run), asked(cfg)):
        return None
    return Path("evaluations") / Path(cfg.run).resolve().name


def load_beside(run: Path) -> dict[str, Dictionary]:
    """The dictionaries that a run trained for comparison, by label."""
    folders = sorted(path for path in (run / BESIDE).glob("*") if path.is_dir())
    return {label_beside(path.name): load_dictionary(path) for path in folders}


def label_beside(name: str) -> str:
    return f"{name}, equal parameters"


def write_into(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes figures.json and the report.

    Raises:
        OSError: names the file that could not be written, and the command that writes it later.
    """
    try:
        write_record(folder, record)
    except OSError as error:
        if not is_run(folder):
            raise
        later = f"{command('evaluate', run=folder)} finds the figures again"
        raise OSError(f"{error}; {later}") from error
    write_report_of(folder)


def evaluated(
    cfg: DictConfig,
    dictionary: Dictionary,
    lm: LanguageModel,
    text: build.Text,
    beside: Mapping[str, Dictionary] | None = None,
    passes: Passes = OWN,
) -> dict[str, Any]:
    """Runs `cfg.eval` on held-out text and prints the table; the record for figures.json.

    Reads `eval`, `eval_tokens` and `eval_windows` of the configuration, and records its `data`.
    `beside` are other dictionaries of the same model, by label. They get the same figures without
    baselines, on the same text, in the same tables. Baselines are fitted on the training split; if
    the whole text is read, on the whole text.
    """
    evals = build.build_evals(cfg)
    n_tokens = min(cfg.eval_tokens, len(text.held_out) * text.held_out.context)
    with bars(f"Evaluating on {n_tokens:,} tokens.") as progress:

        def evaluation_of(
            name: str, dictionary: Dictionary, evals: Mapping[str, Eval]
        ) -> Evaluation:
            return evaluate_dictionary(
                dictionary,
                lm,
                text.held_out,
                evals,
                train_windows=text.train,
                n_tokens=cfg.eval_tokens,
                batch_windows=cfg.eval_windows,
                progress=partial(progress, f"evaluating {name}".rstrip()),
                passes=passes,
            )

        evaluation = evaluation_of("", dictionary, evals)
        others = {
            label: (other, evaluation_of(label, other, _of_dictionaries(evals)))
            for label, other in (beside or {}).items()
        }
    part = WHOLE if text.whole else HELD_OUT
    record = record_of(evaluation, dictionary, lm.info, _settings(cfg.data), others, part)
    escape.console().print(renderable(record), *layers.renderables(record), sep="\n")
    return record


def refuse_unfit_rows(source: HoldsOut, most: int) -> None:
    """Refuses, before training, rows of which no figures can be made, or that are not finite."""
    if len(source.trained) < 2:
        raise ValueError(
            f"source.path: leaves {len(source.trained)} row to train on; want more rows"
        )
    first, differ = None, False
    for batch in source.held_out.batches(most):  # refuses rows that are not finite
        y_NTD = batch.x_NSD if batch.y_NTD is None else batch.y_NTD
        first = y_NTD[0] if first is None else first
        differ = differ or bool((y_NTD != first).any())
    if not differ:
        raise ValueError(
            f"source.held_out: the rows held out are all the same ({len(source.held_out)}), so there is "
            f"no variance to explain; want rows that differ"
        )


def evaluated_rows(
    cfg: DictConfig, dictionary: Dictionary, source: HoldsOut, beside: Mapping[str, Dictionary]
) -> dict[str, Any]:
    """The same on a source's held-out activations: the figures that need no model."""
    evals, rows = build.build_evals(cfg), source.held_out
    left_out = [f"eval.{name}" for name, one in evals.items() if needs_model(one)]
    evals = {name: one for name, one in evals.items() if not needs_model(one)}
    with bars(f"Evaluating on {min(cfg.eval_tokens, len(rows)):,} rows.") as progress:

        def evaluation_of(
            name: str, dictionary: Dictionary, evals: Mapping[str, Eval]
        ) -> Evaluation:
            return evaluate_rows(
                dictionary,
                rows,
                source.trained,
                evals,
                n_rows=cfg.eval_tokens,
                progress=partial(progress, f"evaluating {name}".rstrip()),
            )

        evaluation = evaluation_of("", dictionary, evals)
        others = {
            label: (other, evaluation_of(label, other, _of_dictionaries(evals)))
            for label, other in beside.items()
        }
    record = record_of(evaluation, dictionary, source.info, _settings(cfg.source), others)
    record["text"][ROWS] = True
    escape.console().print(renderable(record), *layers.renderables(record), sep="\n")
    if left_out:
        escape.say(
            f"{', '.join(left_out)}: left out, as these activations come without the model that CE and "
            f"KL need"
        )
    return record


def _of_dictionaries(evals: Mapping[str, Eval]) -> dict[str, Eval]:
    return {name: one for name, one in evals.items() if not isinstance(one, RowSource)}


def _settings(cfg: DictConfig) -> dict[str, Any]:
    data = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(data, dict)
    return {str(key): value for key, value in data.items()}
