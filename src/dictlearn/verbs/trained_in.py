"""The folder that a run was trained in, from which relative paths of its model and text start.

A dictionary's file names model and text as its user typed them, `./model` or `corpus/*.txt`. It is
given to others, who should not see its maker's folders. So the folder is recorded in another file, in
the run's folder. That file is signed together with the dictionary's provenance, so a file of another
run or another user does not count.
"""

from __future__ import annotations

import glob
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictlearn import escape
from dictlearn.ckpt.files import read_json
from dictlearn.ckpt.signature import SIGNATURE, is_own, signed
from dictlearn.disk.whole import write_json
from dictlearn.sources.mixture import texts_in

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
    try:
        record = read_json(file)
    except ValueError:
        return dict(trained)
    folder = record.get("folder") if isinstance(record, dict) else None
    if not isinstance(folder, str) or not is_own(
        {**_with(trained, folder), SIGNATURE: record.get(SIGNATURE)}
    ):
        return dict(trained)
    moved = {key: _moved(Path(folder), trained[key]) for key in MODELS if key in trained}
    if isinstance(data := trained.get("data"), Mapping):
        moved["data"] = _moved_data(Path(folder), data)
    return signed({**trained, **moved})


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
