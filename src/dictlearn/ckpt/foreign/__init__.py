"""Dictionaries that other tools wrote, as ours: one module a format, found by listing.

A module has two functions, and says which files it reads:

    recognises(folder: Path) -> bool        whether the folder looks like this format; cheap
    read(folder: Path) -> Dictionary        raw activations in and out, in evaluation mode
    FILES, OPTIONAL: tuple[str, ...]        patterns of names: all of FILES must be there
    LAYERS: bool                            whether it reads a folder of such folders, a layer each

`provenance` of what is read holds what the files say, in the words of our own: "model" (a hub
id) and "format". A file from a stranger is data: safetensors, JSON and yaml read strictly, pickles
only with weights_only=True, and whatever is in it, the answer is a dictionary or a ValueError.
Modules whose name begins with an underscore are shared by others and read nothing themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

from dictlearn.dicts.dictionary import Dictionary


def importers() -> dict[str, ModuleType]:
    """format -> module."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return {
        name: importlib.import_module(f"{__name__}.{name}")
        for name in sorted(names)
        if not name.startswith("_")
    }


def wanted(files: Mapping[str, int | None]) -> list[str]:
    """Which of a folder's files (name -> size, where that is known) an importer reads; maybe none.

    Folders inside it that are all of one size count as the layers of one dictionary.
    """
    for importer in importers().values():
        folders: dict[str, dict[str, int | None]] = {}
        for file, size in files.items():
            folder, _, name = file.rpartition("/")
            if _matches(name, (*importer.FILES, *importer.OPTIONAL)):
                folders.setdefault(folder, {})[name] = size
        whole = {
            folder: names
            for folder, names in folders.items()
            if all(any(_matches(n, [pattern]) for n in names) for pattern in importer.FILES)
        }
        if "" in whole:
            return sorted(whole[""])
        layers = {folder: names for folder, names in whole.items() if "/" not in folder}
        sizes = {names[max(names, key=lambda n: names[n] or 0)] for names in layers.values()}
        if importer.LAYERS and layers and len(sizes) == 1:
            return sorted(f"{folder}/{name}" for folder, names in layers.items() for name in names)
    return []


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def read_foreign(folder: Path) -> Dictionary | None:
    """The dictionary in `folder`, None where no importer knows its format.

    Raises ValueError, in one sentence, where one does and the files are damaged.
    """
    for importer in importers().values():
        if importer.recognises(folder):
            return importer.read(folder).eval().requires_grad_(False)
    return None
