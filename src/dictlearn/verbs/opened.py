"""What most verbs work on: the dictionary that run= or dictionary= names, its model and its text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict

from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.config import conf_dir
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.evals.evaluation import check_fits
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model, read_info
from dictlearn.types import ModelInfo

Check = Callable[[Dictionary, ModelInfo], None]


@dataclass(frozen=True, eq=False)
class Opened:
    """A saved dictionary beside the model that it reads."""

    path: Path  # where it was found: a run's folder, a dictionary's, or a hub id
    folder: Path  # where the verb writes
    dictionary: Dictionary  # on the model's device
    lm: LanguageModel


def open_dictionary(
    cfg: DictConfig, verb: str, elsewhere: str, check: Check = check_fits, text: bool = True
) -> Opened:
    """Loads what `run` or `dictionary` names, and `model`, or else the model it was trained on.

    Where the configuration names no `data`, it is set to the text that the dictionary was trained
    on. Output goes to `output`, else into the run's folder, else to `elsewhere`/<name>. `check` is
    called before the model's weights are read, with what its config says. `text=False`: none is read.

    Raises:
        ValueError: one sentence where there is nothing to `verb`, or where the two don't fit.
    """
    path, folder = where(cfg, verb, elsewhere)
    dictionary = load_dictionary(path)
    trained = dictionary.training_figures
    lm = _model(cfg, dictionary, trained, check)
    if text and not cfg.get("data"):
        with open_dict(cfg):
            cfg.data = trained_on(trained, path)
    return Opened(Path(path), folder, dictionary.to(lm.device), lm)


def where(cfg: DictConfig, verb: str, elsewhere: str) -> tuple[str, Path]:
    """(where the dictionary is, the folder to write to)."""
    given = [key for key in ("run", "dictionary") if cfg[key] is not None]
    if len(given) != 1:
        both = "run= and dictionary= were both given" if given else f"nothing to {verb}"
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
    return path, Path(elsewhere) / name.name


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


def _model(
    cfg: DictConfig, dictionary: Dictionary, trained: Mapping[str, Any], check: Check
) -> LanguageModel:
    """The model of the configuration, else the one that the dictionary was trained on."""
    name = trained.get("model")
    if cfg.get("model"):
        if name not in (None, cfg.model.path):
            sys.stderr.write(
                f"The dictionary was trained on {name}; the model is {cfg.model.path}.\n"
            )
        check(dictionary, read_info(cfg.model.path, cfg.model.revision))
        return instantiate(cfg.model)
    if not isinstance(name, str):
        raise ValueError("model: the dictionary does not say which model it reads; pass model=")
    revision = trained.get("revision")
    revision = revision if isinstance(revision, str) else None
    check(dictionary, read_info(name, revision))
    other = trained.get("other_model")
    return load_model(
        name, revision, device="auto", other=other if isinstance(other, str) else None
    )
