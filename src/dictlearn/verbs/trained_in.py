"""The folder that a run was trained in, from which relative paths of its model and text start.

A dictionary's file names model and text as its user typed them, `./model` or `corpus/*.txt`. It is
given to others, who should not see its maker's folders. So the folder is recorded in another file, in
the run's folder. That file is signed together with the dictionary's provenance, so a file of another
run or another user does not count.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedTokenizerBase

from dictlearn import escape
from dictlearn.ckpt.dictionary import DESCRIPTION
from dictlearn.ckpt.signature import SIGNATURE, is_own, signed
from dictlearn.disk.strict_json import read_json
from dictlearn.disk.whole import write_json
from dictlearn.sources.mixture import texts_in
from dictlearn.store.features import FeatureStore
from dictlearn.store.tokenizer import signature_of, tokenizer_of

FILE = "trained_in.json"
# Keys of a provenance, and of its data.
MODELS, TEXTS = ("model", "other_model"), ("path", "paths", "template")


def remember(run: Path, origin: Mapping[str, Any]) -> None:
    """Writes the file if `origin`, a dictionary's provenance, names anything in this folder."""
    folder = Path.cwd()
    if SIGNATURE not in origin or not any(_leads_from(folder, name) for name in _names(origin)):
        return
    signature = signed(_with(origin, str(folder)))[SIGNATURE]
    try:
        write_json(run / FILE, {"folder": str(folder), SIGNATURE: signature})
    except OSError as error:
        escape.say(str(error))


def anywhere(trained: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`trained`, with paths that don't exist here made absolute from the folder of the training.

    `path` is the dictionary's folder or the run's. Another user's provenance is left as it is.
    """
    files = [Path(path) / FILE, Path(path).parent / FILE]
    file = next((file for file in files if file.is_file()), None)
    if file is None or not is_own(trained):
        return dict(trained)
    record = _record(file)
    folder = record.get("folder")
    if not isinstance(folder, str) or not is_own(
        {**_with(trained, folder), SIGNATURE: record.get(SIGNATURE)}
    ):
        return dict(trained)
    moved = {key: _moved(Path(folder), trained[key]) for key in MODELS if key in trained}
    if isinstance(data := trained.get("data"), Mapping):
        moved["data"] = _moved_data(Path(folder), data)
    return signed({**trained, **moved})


@contextmanager
def where_it_began(cfg: DictConfig, checkpoint: Path | None) -> Iterator[Path | None]:
    """Works in the folder that a continued run was begun in, if its relative paths lead nowhere here.

    Yields `checkpoint`, which is then absolute, as `run_dir` is. The folder needs no signature: the
    paths in a checkpoint's own configuration are followed without one.
    """
    folder = None if checkpoint is None else _folder(_record(checkpoint.parent.parent / FILE))
    if checkpoint is None or folder is None or not _is_meant(folder, cfg):
        yield checkpoint
        return
    escape.say(f"Relative paths of this run start from {folder}, where it was begun.")
    cfg.run_dir, checkpoint = str(Path(cfg.run_dir).absolute()), checkpoint.absolute()
    with chdir(folder):
        yield checkpoint


def tokenizer_for(store: FeatureStore) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a store's text; a model's folder is found from where the run was trained.

    Raises:
        ValueError: as `tokenizer_of`.
    """
    info, run = store.info, store.folder.parent
    origin = {"model": info.model, "revision": info.revision, SIGNATURE: info.signature}
    if Path(info.model).expanduser().exists() or not is_own(origin):
        return tokenizer_of(info)
    described = _record(run / "dictionary" / DESCRIPTION)
    trained = described.get("training")
    if isinstance(trained, dict) and trained.get("model") == info.model:
        model = anywhere(trained, str(run))["model"]
        signature = signature_of(model, info.revision)
        return tokenizer_of(replace(info, model=model, signature=signature))
    return tokenizer_of(info)


def _record(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where there is none."""
    try:
        record = read_json(path) if path.is_file() else {}
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def _folder(record: Mapping[str, Any]) -> Path | None:
    folder = record.get("folder")
    return Path(folder) if isinstance(folder, str) and Path(folder).is_dir() else None


def _is_meant(folder: Path, cfg: DictConfig) -> bool:
    """Whether a run's configuration names something that lies in `folder` and not here."""
    settings = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(settings, dict)
    model, teacher = settings.get("model") or {}, settings.get("teacher") or {}
    names = [model.get("path"), model.get("other"), teacher.get("path"), teacher.get("folder")]
    names += _names({"data": settings.get("data")})
    return any(_leads_from(folder, n) and not _exists(os.path.expanduser(n)) for n in names if n)


def _with(trained: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """The provenance to sign: that of the dictionary, with the folder beside its data."""
    return {**trained, "data": [trained.get("data"), folder]}


def _names(trained: Mapping[str, Any]) -> list[Any]:
    data = trained.get("data")
    names = [trained.get(key) for key in MODELS]
    for _, text in texts_in(data) if isinstance(data, Mapping) else []:
        for value in [text.get(key) for key in TEXTS]:
            names += value if isinstance(value, list) else [value]
    return names


def _moved_data(folder: Path, data: Mapping[str, Any]) -> dict[str, Any]:
    moved = {key: _moved(folder, value) if key in TEXTS else value for key, value in data.items()}
    if isinstance(parts := data.get("parts"), Mapping):
        moved["parts"] = {
            name: _moved_data(folder, part) if isinstance(part, Mapping) else part
            for name, part in parts.items()
        }
    return moved


def _moved(folder: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_moved(folder, item) for item in value]
    here = isinstance(value, str) and _exists(str(Path(value).expanduser()))
    return str(folder / value) if not here and _leads_from(folder, value) else value


def _leads_from(folder: Path, name: Any) -> bool:
    """Whether a name is a relative path in `folder`, and not pico, a hub id or absolute."""
    if not isinstance(name, str) or name == "pico" or Path(name).expanduser().is_absolute():
        return False
    return _exists(str(folder / name))


def _exists(path: str) -> bool:
    if "{{" in path or "{%" in path:  # a chat template itself, not a file of one
        return False
    return Path(path).exists() or bool(glob.glob(path, recursive=True))
