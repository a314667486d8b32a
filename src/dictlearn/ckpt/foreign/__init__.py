"""Dictionaries that other tools wrote, as ours: one module a format, found by listing.

A module has two functions, and says which files it reads:

    recognises(place: Path) -> bool         whether it looks like this format; cheap
    read(place: Path) -> Dictionary         raw activations in and out, in evaluation mode
    FILES, OPTIONAL: tuple[str, ...]        patterns of names: all of FILES must be there
    LAYERS: bool                            whether it reads a folder of such folders, a layer each
    ALONE: str                              pattern of files that are a dictionary each; may be missing

A place is a folder, or where there is ALONE a file. A pattern may name a file of a folder inside it.

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
        whole = _whole(importer, files)
        if "" in whole:
            return sorted(whole[""])
        layers = {folder: names for folder, names in whole.items() if "/" not in folder}
        sizes = {names[max(names, key=lambda n: names[n] or 0)] for names in layers.values()}
        if importer.LAYERS and layers and len(sizes) == 1:
            return sorted(f"{folder}/{name}" for folder, names in layers.items() for name in names)
    return []


def wanted_with(file: str, files: Iterable[str]) -> list[str]:
    """The files that an importer reads if it is asked for this one; none if no importer takes it."""
    folder, slash, name = file.rpartition("/")
    for importer in importers().values():
        if fnmatchcase(name, getattr(importer, "ALONE", "")):
            beside = {folder + slash + name for name in importer.OPTIONAL}
            return [file, *sorted(beside.intersection(files))]
    return []


def folders_with(files: Mapping[str, int | None]) -> set[str]:
    """The folders that hold what some importer reads."""
    return {folder for module in importers().values() for folder in _whole(module, files)}


def _whole(
    importer: ModuleType, files: Mapping[str, int | None]
) -> dict[str, dict[str, int | None]]:
    """folder -> the names below it that an importer reads, where all of its FILES are there."""
    folders: dict[str, dict[str, int | None]] = {}
    patterns = (*importer.FILES, *importer.OPTIONAL)
    for file, size in files.items():
        pieces = file.split("/")
        for pattern in patterns:
            depth = pattern.count("/") + 1
            name = "/".join(pieces[-depth:])
            if len(pieces) >= depth and fnmatchcase(name, pattern):
                folders.setdefault("/".join(pieces[:-depth]), {})[name] = size
    return {
        folder: names
        for folder, names in folders.items()
        if all(any(fnmatchcase(n, pattern) for n in names) for pattern in importer.FILES)
    }


def read_foreign(place: Path) -> Dictionary | None:
    """The dictionary in a folder or file, None where no importer knows its format.

    Raises ValueError, in one sentence, where one does and the files are damaged.
    """
    for importer in importers().values():
        if importer.recognises(place):
            return importer.read(place).eval().requires_grad_(False)
    return None
