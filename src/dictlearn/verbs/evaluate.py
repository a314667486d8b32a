"""`dictlearn evaluate`: figures of a saved dictionary on held-out text, a table and a report."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.progress import Progress

from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.config import conf_dir
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.evals import layers
from dictlearn.evals.context import RowSource
from dictlearn.evals.evaluation import Eval, Evaluation, check_fits, evaluate_dictionary
from dictlearn.evals.record import record_of, write_record
from dictlearn.evals.report import write_report
from dictlearn.evals.table import renderable
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model, read_info
from dictlearn.verbs import build

BESIDE = "beside"  # folder in a run's, of the dictionaries to compare its own with


def main(cfg: DictConfig) -> int:
    """Loads, evaluates, prints the table; returns the process's exit status."""
    path, folder = where(cfg)
    dictionary = load_dictionary(path)
    trained = dictionary.training_figures
    lm = _model(cfg, dictionary, trained)
    if not cfg.get("data"):
        with open_dict(cfg):
            cfg.data = trained_on(trained, path)
    beside = {name: one.to(lm.device) for name, one in load_beside(Path(path)).items()}
    evaluate_into(folder, cfg, dictionary.to(lm.device), lm, beside)
    _say(f"The report: {folder / 'report.html'}")
    return 0


def load_beside(run: Path) -> dict[str, Dictionary]:
    """What a run trained to be compared with, by what to call it."""
    folders = sorted(path for path in (run / BESIDE).glob("*") if path.is_dir())
    return {label_beside(path.name): load_dictionary(path) for path in folders}


def label_beside(name: str) -> str:
    return f"{name}, equal parameters"


def evaluate_into(
    folder: Path,
    cfg: DictConfig,
    dictionary: Dictionary,
    lm: LanguageModel,
    beside: Mapping[str, Dictionary] | None = None,
) -> dict[str, Any]:
    """Runs `cfg.eval` on held-out text, prints the table, writes figures.json and the report.

    Reads `data`, `eval`, `eval_tokens` and `eval_windows` of the configuration. `beside` are other
    dictionaries of the same model, by what to call them: the same figures, less the baselines, on
    the same text, in the same tables. Returns what figures.json holds.
    """
    for key in ("eval_tokens", "eval_windows"):
        if cfg[key] < 1:
            raise ValueError(f"{key}={cfg[key]}: want at least 1")
    evals = build.named(cfg.eval)
    held_out, train = (build.build_windows(cfg, lm, split) for split in ("eval", "train"))
    console = Console(stderr=True)
    if not console.is_terminal:
        _say(f"Evaluating on {cfg.eval_tokens:,} held-out tokens.")
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:

        def evaluated(name: str, one: Dictionary, evals: Mapping[str, Eval]) -> Evaluation:
            task = bar.add_task(f"evaluating {name}".rstrip(), total=None)
            return evaluate_dictionary(
                one,
                lm,
                held_out,
                evals,
                train_windows=train,
                n_tokens=cfg.eval_tokens,
                batch_windows=cfg.eval_windows,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )

        evaluation = evaluated("", dictionary, evals)
        of_dictionaries = {k: e for k, e in evals.items() if not isinstance(e, RowSource)}
        others = {
            label: (other, evaluated(label, other, of_dictionaries))
            for label, other in (beside or {}).items()
        }
    data = OmegaConf.to_container(cfg.data, resolve=True)
    assert isinstance(data, dict)
    text = {str(key): value for key, value in data.items()}
    record = record_of(evaluation, dictionary, lm.info, text, others)
    write_record(folder, record)
    write_report(folder)
    Console().print(renderable(record), *layers.renderables(record), sep="\n")
    return record


def where(cfg: DictConfig) -> tuple[str, Path]:
    """(where the dictionary is, the folder to write to)."""
    given = [key for key in ("run", "dictionary") if cfg[key] is not None]
    if len(given) != 1:
        both = "run= and dictionary= were both given" if given else "nothing to evaluate"
        raise ValueError(
            f"{both}; want run=<a run's folder>, or dictionary=<a saved dictionary's folder or a "
            "hub id>"
        )
    path = str(cfg[given[0]])
    if cfg.run is not None and not Path(path).is_dir():
        raise ValueError(f"run={path}: no such folder; dictionary= also takes a hub id")
    if cfg.output is not None:
        return path, Path(cfg.output)
    if cfg.run is not None:
        return path, Path(path)
    name = Path(path).resolve().parent if Path(path).name == "dictionary" else Path(path)
    return path, Path("evaluations") / name.name


def trained_on(trained: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The `data` settings that a dictionary's file names, for this installation's own builders.

    The file may come from anybody: of it only plain values are taken, and only for keys that the
    yaml of the same builder in conf/data has.
    """
    theirs = trained.get("data", {})
    for file in sorted((conf_dir() / "data").glob("*.yaml")):
        ours = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        assert isinstance(ours, dict)
        if ours.get("_target_") == theirs.get("_target_"):
            plain = {key: theirs[key] for key in ours if _takes(key, theirs)}
            return {str(key): value for key, value in (ours | plain).items()}
    raise ValueError(f"{path}: does not say which text it was trained on; name some with data=")


def _takes(key: object, theirs: Mapping[object, object]) -> bool:
    hydras = str(key).startswith("_")  # _target_, _partial_: ours alone
    return not hydras and key in theirs and _is_plain(theirs[key])


def _is_plain(value: object) -> bool:
    if isinstance(value, list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float | bool)


def _model(cfg: DictConfig, dictionary: Dictionary, trained: Mapping[str, Any]) -> LanguageModel:
    """The model of the configuration, else the one that the dictionary was trained on."""
    name = trained.get("model")
    if cfg.get("model"):
        if name not in (None, cfg.model.path):
            _say(f"Trained on {name}, evaluated on {cfg.model.path}.")
        check_fits(dictionary, read_info(cfg.model.path, cfg.model.revision))
        return instantiate(cfg.model)
    if not isinstance(name, str):
        raise ValueError("model: the dictionary does not say which model it reads; pass model=")
    revision = trained.get("revision")
    revision = revision if isinstance(revision, str) else None
    check_fits(dictionary, read_info(name, revision))
    other = trained.get("other_model")
    return load_model(
        name, revision, device="auto", other=other if isinstance(other, str) else None
    )


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
