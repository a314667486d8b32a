"""Dictionaries in other tools' formats: one file each, and one yaml each in conf/format."""

from __future__ import annotations

import importlib
import pkgutil

from dictlearn.export.protocol import Exporter


def registry() -> dict[str, type[Exporter]]:
    """format -> class, of every module of this package: no list to keep."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {kind.name: kind for kind in Exporter.__subclasses__()}
