"""Dictionaries that other tools wrote, as ours: one module a format, found by listing.

A module has two functions:

    recognises(folder: Path) -> bool        whether the folder looks like this format; cheap
    read(folder: Path) -> Dictionary        raw activations in and out, in evaluation mode

`training_figures` of what is read holds what the files say, in the words of our own: "model" (a hub
id) and "format". A file from a stranger is data: safetensors, JSON and yaml read strictly, pickles
only with weights_only=True, and whatever is in it, the answer is a dictionary or a ValueError.
Modules whose name begins with an underscore are shared by others and read nothing themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
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


def read_foreign(folder: Path) -> Dictionary | None:
    """The dictionary in `folder`, None where no importer knows its format.

    Raises ValueError, in one sentence, where one does and the files are damaged.
    """
    for importer in importers().values():
        if importer.recognises(folder):
            return importer.read(folder).eval().requires_grad_(False)
    return None
