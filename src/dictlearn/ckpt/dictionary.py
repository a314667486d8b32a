"""Save and load the inference form of a dictionary: dictionary.safetensors + dictionary.json.

    {"format": 2, "sha256": of "dictionary" and of the tensors,
     "dictionary": {kind, sources, targets, width, n_features, k, ..., "sparsity": {"name", options}},
     "training": {model, revision, text, figures, ...}}

A file holds tensors and JSON, and its names are looked up among dictlearn's own classes, so a file
from a stranger can't run code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dictlearn.ckpt import commit
from dictlearn.ckpt.files import (
    check_numbers,
    read_header,
    read_tensors,
    write_tensors,
)
from dictlearn.ckpt.foreign import importers, read_foreign
from dictlearn.ckpt.hub import download
from dictlearn.dicts.description import from_json, shape_from_json, shown
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.disk.leftovers import recover
from dictlearn.disk.strict_json import read_json

FORMAT = 2  # 1 had no sha256
SORT = "a dictionary"  # in its manifest
TENSORS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"
DESCRIPTION_BYTES = 64 << 20  # a MOLT lists the rank of every feature
ENCODER = "encoder.W_enc"


def save_dictionary(dictionary: Dictionary, folder: Path, training: dict[str, Any]) -> None:
    """Writes the folder whole or not at all. `training` is the provenance, as plain JSON."""
    commit.commit(
        folder,
        lambda temporary: write_dictionary(dictionary, temporary, training),
        sort=SORT,
    )


def write_dictionary(dictionary: Dictionary, folder: Path, training: Mapping[str, Any]) -> None:
    """Writes the two files into an existing folder, without a manifest."""
    description = {
        "format": FORMAT,
        "sha256": sha256_of(dictionary),
        "dictionary": dictionary.to_json(),
        "training": dict(training),
    }
    text = json.dumps(description, indent=2, allow_nan=False)
    write_tensors(folder / TENSORS, dictionary.state_dict())
    (folder / DESCRIPTION).write_text(text + "\n", encoding="utf-8")


def load_dictionary(path: str | Path, revision: str | None = None) -> Dictionary:
    """Loads a dictionary from a run's folder, its `dictionary/`, or a hub repository.

    A hub repository is owner/name, or owner/name/folder. A folder that another tool wrote is read by
    its importer (`ckpt/foreign`). The dictionary takes and returns raw activations; `.provenance`
    names the model and the text of its training.

    Raises:
        ValueError: one sentence, if there is no dictionary or it is damaged.
    """
    folder = _find(path, revision)
    if not (folder / DESCRIPTION).is_file():
        return _read_foreign(folder)
    verified = (folder / commit.MANIFEST).is_file()
    if verified:
        commit.verify(folder)
    return _read_own(folder, verified)


def _read_own(folder: Path, verified: bool) -> Dictionary:
    """Reads the files of `write_dictionary`, which somebody else may have written.

    The dictionary that the JSON describes is built on the meta device. Its tensors must have the
    names and shapes in the header of the safetensors file before any number is read.
    """
    where, path = folder / DESCRIPTION, folder / TENSORS
    description = read_json(where, DESCRIPTION_BYTES)
    if not isinstance(description, dict) or description.get("format") not in (1, FORMAT):
        raise ValueError(f"{where}: want a dictlearn dictionary of format 1 or {FORMAT}")
    training = description.get("training", {})
    if not isinstance(training, dict):
        raise ValueError(f"{where}: training={shown(training)}: want an object")
    header = read_header(path)
    try:
        dictionary = _build_on_meta(description.get("dictionary"), header, path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    tensors = read_tensors(path)
    check_numbers(path, tensors)
    dictionary.load_state_dict(tensors, assign=True)
    # Files from the hub come without their manifest, so the description has a hash too.
    hashed = not verified and description["format"] == FORMAT
    if hashed and description.get("sha256") != sha256_of(dictionary):
        raise ValueError(
            f"{folder}: {TENSORS} and {DESCRIPTION} are not what was saved (sha256 differs): one of "
            "them is damaged or of another dictionary; copy or download the folder again"
        )
    dictionary.float()  # other dtypes are accepted in files only
    dictionary.provenance = training
    return dictionary.eval().requires_grad_(False)


def _build_on_meta(described: Any, header: Mapping[str, tuple[str, Any]], path: Path) -> Dictionary:
    """The described dictionary on the meta device, if its tensors are those of the header."""
    shape = shape_from_json(described)
    encoder = (shape.code_sources, shape.n_features, shape.link.read_width(shape))
    shapes = {name: size for name, (_, size) in header.items()}
    # These two checks bound the sizes by the file's before anything is built.
    if shapes.get(ENCODER) != encoder:
        raise _mismatch(ENCODER, encoder, shapes, path)
    if shape.link.least_tensors > len(header):
        options = ", ".join(f"{key}={shown(v)}" for key, v in shape.link.options().items())
        raise ValueError(f"{options}: {path.name} has no tensors of all of these")
    with torch.device("meta"):
        dictionary = from_json(described)
    expected = {name: tuple(t.shape) for name, t in dictionary.state_dict().items()}
    for name in sorted(expected.keys() | shapes.keys()):
        if expected.get(name) != shapes.get(name):
            raise _mismatch(name, expected.get(name), shapes, path)
    return dictionary


def _mismatch(name: str, expected: Any, shapes: Mapping[str, Any], path: Path) -> ValueError:
    if expected is None:
        return ValueError(f"{path.name} has a tensor {shown(name)}, which is no part of it")
    has = f"has shape {list(shapes[name])}" if name in shapes else "is not there"
    return ValueError(f"{path.name} does not fit: {name} {has}; want {list(expected)}")


def saved_sha256(path: str | Path) -> str | None:
    """The `sha256_of` the dictionary in a run's folder or its `dictionary/`, without loading it.

    It is None if there is no dictionary in our own format. Format 1 has no hash and is loaded.
    """
    for candidate in map(recover, (Path(path), Path(path) / "dictionary")):
        if (candidate / DESCRIPTION).is_file():
            description = read_json(candidate / DESCRIPTION)
            saved = description.get("sha256") if isinstance(description, dict) else None
            return saved if isinstance(saved, str) else sha256_of(load_dictionary(candidate))
    return None


def _find(path: str | Path, revision: str | None) -> Path:
    folder = Path(path).expanduser()
    for candidate in map(recover, (folder, folder / "dictionary")):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if folder.exists():
        return folder
    folder = download(str(path), revision)
    inner = folder / "dictionary"
    return inner if (inner / DESCRIPTION).is_file() else folder


def _read_foreign(folder: Path) -> Dictionary:
    dictionary = read_foreign(folder)
    if dictionary is None:
        raise ValueError(f"{folder}: {_why_none(folder)}")
    if (folder / commit.MANIFEST).is_file():  # dictlearn exported it
        commit.verify(folder)
    return dictionary


def _why_none(folder: Path) -> str:
    """Why a folder has no dictionary, and what to give instead."""
    if (folder / "checkpoints").is_dir():
        return (
            "holds no dictionary yet: the run has not ended; "
            "train resume=auto name=<its name> continues it"
        )
    runs = sorted(path.parent.parent.name for path in folder.glob(f"*/dictionary/{DESCRIPTION}"))
    if runs:
        return f"holds several runs; name one of {', '.join(runs[:5])}{', ...' * (len(runs) > 5)}"
    return (
        f"holds no {DESCRIPTION}; want a run's folder, its dictionary/, or what "
        f"{', '.join(importers())} wrote"
    )
