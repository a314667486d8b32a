"""The folder that a run was trained in, from which relative names of its model and text lead.

A dictionary says what it was trained on as its user named it, `./model` or `corpus/*.txt`: it is given
to others, whom the folders of its maker don't concern. So the folder itself stands in the run's, in a
file of its own, which is signed together with what the dictionary says: no other run's, and nobody
else's, counts.
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

FILE = "trained_in.json"
MODELS, TEXTS = ("model", "other_model"), ("path", "paths")  # keys of a provenance, and of its data


def remember(run: Path, origin: Mapping[str, Any]) -> None:
    """Writes the file where `origin`, a dictionary's provenance, names anything from this folder."""
    folder = Path.cwd()
    if SIGNATURE not in origin or not any(_leads_from(folder, name) for name in _names(origin)):
        return
    signature = signed(_with(origin, str(folder)))[SIGNATURE]
    try:
        write_json(run / FILE, {"folder": str(folder), SIGNATURE: signature})
    except OSError as error:
        escape.say(str(error))


def anywhere(trained: Mapping[str, Any], path: str) -> dict[str, Any]:
    """`trained`, with what isn't found from here named from the folder that the run was trained in.

    `path` is where the dictionary was found. What another user trained is left as it is.
    """
    places = [Path(path) / FILE, Path(path).parent / FILE]
    file = next((place for place in places if place.is_file()), None)
    if file is None or not is_own(trained):
        return dict(trained)
    try:
        said = read_json(file)
    except ValueError:
        return dict(trained)
    folder = said.get("folder") if isinstance(said, dict) else None
    if not isinstance(folder, str) or not is_own(
        {**_with(trained, folder), SIGNATURE: said.get(SIGNATURE)}
    ):
        return dict(trained)
    moved = {key: _moved(Path(folder), trained[key]) for key in MODELS if key in trained}
    if isinstance(data := trained.get("data"), Mapping):
        moved["data"] = {
            key: _moved(Path(folder), value) if key in TEXTS else value
            for key, value in data.items()
        }
    return signed({**trained, **moved})


def _with(trained: Mapping[str, Any], folder: str) -> dict[str, Any]:
    """What is signed: all that is followed, and from where."""
    return {**trained, "data": [trained.get("data"), folder]}


def _names(trained: Mapping[str, Any]) -> list[Any]:
    data = trained.get("data")
    found = [trained.get(key) for key in MODELS]
    for value in [data.get(key) for key in TEXTS] if isinstance(data, Mapping) else []:
        found += value if isinstance(value, list) else [value]
    return found


def _moved(folder: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_moved(folder, one) for one in value]
    here = isinstance(value, str) and _lies_at(str(Path(value).expanduser()))
    return str(folder / value) if not here and _leads_from(folder, value) else value


def _leads_from(folder: Path, name: Any) -> bool:
    """Whether a name is of something in `folder`, and neither pico, a hub id nor absolute."""
    if not isinstance(name, str) or name == "pico" or Path(name).expanduser().is_absolute():
        return False
    return _lies_at(str(folder / name))


def _lies_at(place: str) -> bool:
    return Path(place).exists() or bool(glob.glob(place, recursive=True))
