"""Sparsities by name: every module of this package that defines a Sparsity, no list to keep."""

from __future__ import annotations

import importlib
import pkgutil

from dictlearn.sparsity.protocol import Sparsity


def registry() -> dict[str, type[Sparsity]]:
    """name -> class, for rebuilding a saved dictionary; never an arbitrary import path."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {kind.name: kind for kind in Sparsity.__subclasses__()}
