"""The inference form on disk: dictionary.safetensors + dictionary.json.

    {"format": 2, "sha256": of "dictionary" and of the tensors,
     "dictionary": {kind, sources, targets, width, n_features, k, ..., "sparsity": {"name", options}},
     "training": {model, revision, text, figures, ...}}

Plain tensors and plain JSON. Names are looked up among the project's own, so that a file from a
stranger can describe a dictionary and can't run anything.
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
    read_json,
    read_tensors,
    write_tensors,
)
from dictlearn.ckpt.foreign import importers, read_foreign
from dictlearn.ckpt.hub import fetched
from dictlearn.dicts.description import from_json, shape_from_json, shown
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.identity import sha256_of
from dictlearn.disk.leftovers import recover

FORMAT = 2  # 1 had no sha256
SORT = "a dictionary"  # in its manifest
TENSORS, DESCRIPTION = "dictionary.safetensors", "dictionary.json"
DESCRIPTION_BYTES = 64 << 20  # a MOLT says the rank of each of its features
ENCODER = "encoder.W_enc"


def save_dictionary(dictionary: Dictionary, folder: Path, training: dict[str, Any]) -> None:
    """Writes the folder whole or not at all. `training` is plain JSON about where it came from."""
    commit.commit(
        folder,
        lambda temporary: write_dictionary(dictionary, temporary, training),
        sort=SORT,
    )


def write_dictionary(dictionary: Dictionary, folder: Path, training: Mapping[str, Any]) -> None:
    """The two files alone, into a folder that is there."""
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
    """The dictionary of a run's folder, of its `dictionary/`, or of a hub repository (owner/name, or
    owner/name/folder for one in a folder of it).

    A folder that another tool wrote is read by its importer (`ckpt/foreign`). It takes and returns
    raw activations; `.provenance` says where it came from.

    Raises:
        ValueError: one sentence where there is no dictionary, or where it is damaged.
    """
    folder = _find(path, revision)
    if not (folder / DESCRIPTION).is_file():
        return _read_foreign(folder)
    verified = (folder / commit.MANIFEST).is_file()
    if verified:
        commit.verify(folder)
    return _read_own(folder, verified)


def _read_own(folder: Path, verified: bool) -> Dictionary:
    """What `write_dictionary` wrote, or somebody else under its names: nothing in it is believed.

    Sizes come from the tensors on the disk. The dictionary that the JSON describes is built without
    memory and compared with them by name and shape before any number is read.
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
        dictionary = _described(description.get("dictionary"), header, path)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    tensors = read_tensors(path)
    check_numbers(path, tensors)
    dictionary.load_state_dict(tensors, assign=True)
    # Files that came without their manifest, as a hub hands them out, have this to be checked by.
    signed = not verified and description["format"] == FORMAT
    if signed and description.get("sha256") != sha256_of(dictionary):
        raise ValueError(
            f"{folder}: {TENSORS} and {DESCRIPTION} are not what was saved (sha256 differs): one of "
            "them is damaged or of another dictionary; copy or download the folder again"
        )
    dictionary.float()  # what is computed in, whatever was saved
    dictionary.provenance = training
    return dictionary.eval().requires_grad_(False)


def _described(described: Any, header: Mapping[str, tuple[str, Any]], path: Path) -> Dictionary:
    """On the meta device, of just the tensors that the header tells of."""
    shape = shape_from_json(described)
    encoder = (shape.code_sources, shape.n_features, shape.link.read_width(shape))
    found = {name: size for name, (_, size) in header.items()}
    # These two say that the rest is no larger than the file, before anything of that size is made.
    if found.get(ENCODER) != encoder:
        raise _unlike(ENCODER, encoder, found, path)
    if shape.link.least_tensors > len(header):
        options = ", ".join(f"{key}={shown(v)}" for key, v in shape.link.options().items())
        raise ValueError(f"{options}: {path.name} has no tensors of all of these")
    with torch.device("meta"):
        dictionary = from_json(described)
    expected = {name: tuple(t.shape) for name, t in dictionary.state_dict().items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise _unlike(name, expected.get(name), found, path)
    return dictionary


def _unlike(name: str, wanted: Any, found: Mapping[str, Any], path: Path) -> ValueError:
    if wanted is None:
        return ValueError(f"{path.name} has a tensor {shown(name)}, which is no part of it")
    has = f"has shape {list(found[name])}" if name in found else "is not there"
    return ValueError(f"{path.name} does not fit: {name} {has}; want {list(wanted)}")


def saved_sha256(path: str | Path) -> str | None:
    """Which dictionary lies in a run's folder, or in its `dictionary/`: see `sha256_of`.

    None where there is none of ours. Its tensors are not read, unless it is too old to say.
    """
    for candidate in map(recover, (Path(path), Path(path) / "dictionary")):
        if (candidate / DESCRIPTION).is_file():
            description = read_json(candidate / DESCRIPTION)
            said = description.get("sha256") if isinstance(description, dict) else None
            return said if isinstance(said, str) else sha256_of(load_dictionary(candidate))
    return None


def _find(path: str | Path, revision: str | None) -> Path:
    folder = Path(path).expanduser()
    for candidate in map(recover, (folder, folder / "dictionary")):
        if (candidate / DESCRIPTION).is_file():
            return candidate
    if folder.exists():
        return folder
    folder = fetched(str(path), revision)
    inner = folder / "dictionary"
    return inner if (inner / DESCRIPTION).is_file() else folder


def _read_foreign(folder: Path) -> Dictionary:
    dictionary = read_foreign(folder)
    if dictionary is None:
        raise ValueError(f"{folder}: {_instead(folder)}")
    if (folder / commit.MANIFEST).is_file():  # of our own export, as it lay here
        commit.verify(folder)
    return dictionary


def _instead(folder: Path) -> str:
    """What a folder without a dictionary is, or what was wanted."""
    if (folder / "checkpoints").is_dir():
        return (
            "holds no dictionary yet: the run has not come to its end; "
            "train resume=auto name=<its name> goes on"
        )
    runs = sorted(path.parent.parent.name for path in folder.glob(f"*/dictionary/{DESCRIPTION}"))
    if runs:
        return f"holds several runs; name one of {', '.join(runs[:5])}{', ...' * (len(runs) > 5)}"
    return (
        f"holds no {DESCRIPTION}; want a run's folder, its dictionary/, or what "
        f"{', '.join(importers())} wrote"
    )
