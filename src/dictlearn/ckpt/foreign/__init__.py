"""Read dictionaries that other tools wrote; each module of this package reads one format.

A module has two functions, and names the files that it reads:

    recognises(place: Path) -> bool         whether it looks like this format; must be fast
    read(place: Path) -> Dictionary         reads and writes raw activations, in evaluation mode
    FILES, OPTIONAL: tuple[str, ...]        patterns of file names; all of FILES must exist
    LAYERS: bool                            whether it reads a folder of such folders, one per layer
    ALONE: str                              pattern of files that are one dictionary each; may be missing

A place is a folder, or a file if there is ALONE. A pattern may contain the name of a subfolder.

The dictionary's `provenance` has "format" and, if the files name it, "model" (a hub id). Files may come
from strangers: safetensors, JSON and yaml are read strictly, pickles only with weights_only=True, and
any content gives a dictionary or a ValueError. Modules with a leading underscore are shared by others.
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
    """The importers' modules, by format."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return {
        name: importlib.import_module(f"{__name__}.{name}")
        for name in sorted(names)
        if not name.startswith("_")
    }


def wanted(files: Mapping[str, int | None]) -> list[str]:
    """The files of a folder that an importer reads, or none; `files` has sizes, if known.

    Subfolders with files of equal size count as the layers of one dictionary.
    """
    for importer in importers().values():
        folders = _complete_folders(importer, files)
        if "" in folders:
            return sorted(folders[""])
        layers = {folder: names for folder, names in folders.items() if "/" not in folder}
        sizes = {names[max(names, key=lambda n: names[n] or 0)] for names in layers.values()}
        if importer.LAYERS and layers and len(sizes) == 1:
            return sorted(f"{folder}/{name}" for folder, names in layers.items() for name in names)
    return []


def wanted_with(file: str, files: Iterable[str]) -> list[str]:
    """The files that an importer needs to read `file` alone; none if no importer reads it."""
    folder, slash, name = file.rpartition("/")
    for importer in importers().values():
        if fnmatchcase(name, getattr(importer, "ALONE", "")):
            beside = {folder + slash + name for name in importer.OPTIONAL}
            return [file, *sorted(beside.intersection(files))]
    return []


def alone_in(files: Iterable[str]) -> list[str]:
    """The files of a folder that its importer reads each by itself, such as a layer each."""
    names = dict.fromkeys(files)
    for importer in importers().values():
        if "" in _complete_folders(importer, names):
            pattern = getattr(importer, "ALONE", "")
            return sorted(name for name in names if "/" not in name and fnmatchcase(name, pattern))
    return []


def folders_with(files: Mapping[str, int | None]) -> set[str]:
    """The folders with a dictionary that some importer reads."""
    return {
        folder for module in importers().values() for folder in _complete_folders(module, files)
    }


def _complete_folders(
    importer: ModuleType, files: Mapping[str, int | None]
) -> dict[str, dict[str, int | None]]:
    """folder -> the names below it that an importer reads, for folders with all of its FILES."""
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
    """The dictionary in a folder or file, or None if no importer recognises it.

    Raises ValueError, in one sentence, if the files are damaged.
    """
    for importer in importers().values():
        if importer.recognises(place):
            return importer.read(place).eval().requires_grad_(False)
    return None
