"""Opens the dictionary that run= or dictionary= names, with its model and its text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from dictlearn import escape
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.ckpt.signature import is_own
from dictlearn.config import literal
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.disk.replace import refuse_other_run
from dictlearn.evals.evaluation import check_fits
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model, load_skeleton, read_info
from dictlearn.sources.tensors import NAME as TENSORS
from dictlearn.types import ModelInfo
from dictlearn.verbs import build
from dictlearn.verbs.trained_in import anywhere
from dictlearn.verbs.trained_text import part_of, trained_on

Check = Callable[[Dictionary, ModelInfo], None]


class OpensKeys:
    """Declares the values of the keys that verbs over a saved dictionary share."""

    run: str | None
    dictionary: str | None
    output: str | None
    overwrite: bool


@dataclass(frozen=True, eq=False)
class Opened:
    """A saved dictionary beside the model that it reads."""

    path: Path  # the run's folder, the dictionary's, or the hub id
    folder: Path  # the folder that the verb writes to
    dictionary: Dictionary  # on the model's device
    lm: LanguageModel
    split: str = "eval"  # the split of the text that is read
    windows: Any = None  # the windows of that split; None if no text is read


def open_dictionary(
    cfg: DictConfig, verb: str, elsewhere: str, check: Check = check_fits, text: bool = True
) -> Opened:
    """Loads the dictionary that `run` or `dictionary` names, and `model`, or its training's model.

    If the configuration names no `data`, it is set to the text that the dictionary was trained on,
    if the user chose that text or it comes with Python, and its held-out part is read. Text that the
    user names is read whole (but see `part_of`). Output goes to `output`, else into the run's
    folder, else to `elsewhere`/<name>. `check` is called with the model's config, then the text is
    read, then the model's weights. With `text=False` no text is read.

    Raises:
        ValueError: one sentence if there is nothing to `verb`, or if dictionary and model don't fit.
    """
    path, folder = where(cfg, verb, elsewhere)
    dictionary = load_dictionary(path)
    trained = anywhere(dictionary.provenance, path)
    if trained.get("model") == TENSORS and not cfg.get("model"):
        raise ValueError(
            f"{path}: was trained on arrays of activations, so it has no model and no text; want "
            f"model= and data= to name those that the arrays are of"
        )
    split = "eval"
    if text and cfg.get("data"):
        _take_context(cfg, trained)
        split = part_of(cfg.data, trained)
    elif text:
        with open_dict(cfg):
            cfg.data = literal(trained_on(trained, path))
    name, revision, other = _model(cfg, dictionary, trained, path, check)
    windows = None
    if text:
        skeleton = load_skeleton(name, revision, other, tokenizer=True)
        windows = build.build_windows(cfg, skeleton, split)
    if cfg.get("model"):
        lm = instantiate(cfg.model)
    else:
        lm = load_model(name, revision, device="auto", other=other)
    return Opened(Path(path), folder, dictionary.to(lm.device), lm, split, windows)


def check_positive(dictionary: Dictionary, info: ModelInfo) -> None:
    """Raises ValueError, in one sentence, if the two don't fit or a feature's sign would be lost."""
    check_fits(dictionary, info)
    if dictionary.sparsity.signed:
        raise ValueError(
            f"dictionary: its {dictionary.sparsity.name} features may be negative, and features are "
            f"described by where they are positive; want one whose features are, such as topk"
        )


def _take_context(cfg: DictConfig, trained: Mapping[str, Any]) -> None:
    """Sets data.context to that of the training, unless the command line sets it."""
    is_set = HydraConfig.initialized() and any(
        text.startswith("data.context=") for text in HydraConfig.get().overrides.task
    )
    theirs = trained.get("data")
    context = theirs.get("context") if isinstance(theirs, Mapping) else None
    if "context" in cfg.data and not is_set and type(context) is int and context >= 2:
        cfg.data.context = context  # a model that reads less refuses it


def where(cfg: DictConfig, verb: str, elsewhere: str) -> tuple[str, Path]:
    """(the dictionary's folder or hub id, the folder to write to), which is no other run's."""
    keys = [key for key in ("run", "dictionary") if cfg[key] is not None]
    if len(keys) != 1:
        both = "run= and dictionary= were both given" if keys else f"nothing to {verb}"
        raise ValueError(
            f"{both}; want run=<a run's folder>, or dictionary=<a saved dictionary's folder or a "
            "hub id>"
        )
    path = str(cfg[keys[0]])
    if cfg.run is not None and not Path(path).is_dir():
        raise ValueError(f"run={path}: no such folder; dictionary= also takes a hub id")
    if cfg.output is not None:
        refuse_other_run(Path(cfg.output), path)
        return path, Path(cfg.output)
    if cfg.run is not None:
        return path, Path(path)
    name = Path(path).resolve().parent if Path(path).name == "dictionary" else Path(path)
    return path, Path(elsewhere) / name.name


def own_model(trained: Mapping[str, Any], path: str, key: str = "model") -> str | None:
    """The model that a file names under `key`: `pico`, a hub id or, in the user's own file, a folder."""
    name = trained.get(key)
    if not isinstance(name, str):
        return None
    if name != "pico" and not is_own(trained) and Path(name).expanduser().exists():
        raise ValueError(
            f"{path}: says that it reads the model in the folder {name}, and a file that was not "
            f"written by your own training chooses no folder to read here; name it with model="
        )
    return name


def _model(
    cfg: DictConfig, dictionary: Dictionary, trained: Mapping[str, Any], path: str, check: Check
) -> tuple[str, str | None, str | None]:
    """The model of the configuration, else the one that the dictionary was trained on.

    Its path, its revision and the path of the other model, where there is one.
    """
    if cfg.get("model"):
        name = trained.get("model")
        if name not in (None, cfg.model.path):
            escape.say(f"The dictionary was trained on {name}; the model is {cfg.model.path}.")
        check(dictionary, read_info(cfg.model.path, cfg.model.revision))
        return cfg.model.path, cfg.model.revision, cfg.model.other
    name = own_model(trained, path)
    if name is None:
        raise ValueError("model: the dictionary does not say which model it reads; pass model=")
    revision = trained.get("revision")
    revision = revision if isinstance(revision, str) else None
    other = own_model(trained, path, "other_model")
    try:
        info = read_info(name, revision)
    except ValueError as error:
        raise ValueError(
            f"{path}: was trained on {error}; model=<folder or hub id> names it"
        ) from error
    check(dictionary, info)
    return name, revision, other
