"""Export to other tools' formats: one file each, and one yaml each in conf/format."""

from __future__ import annotations

import importlib
import pkgutil

from dictlearn.export.protocol import Exporter


def registry() -> dict[str, type[Exporter]]:
    """The exporters of all modules of this package, by format."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {kind.name: kind for kind in Exporter.__subclasses__()}
