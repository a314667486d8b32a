"""Imports the modules of a user's own that the yaml in their --config-dir name.

A saved dictionary names its link and its sparsity, and both are looked up among imported classes. Only
the user's own yaml decides what is imported, never the dictionary's file.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

from hydra.core.hydra_config import HydraConfig

HINT = "one of your own is found by --config-dir=<the folder of its yaml>, or once its module is imported"
TARGET = re.compile(r"^\s*_target_:\s*['\"]?([\w.]+)\.\w+", re.MULTILINE)


def import_modules(group: str) -> None:
    """Imports the modules that the yaml of a group (dict, sparsity) in the user's folders name.

    Raises:
        ValueError: one of them can't be imported.
    """
    for path in _yaml(group):
        for module in TARGET.findall(path.read_text(encoding="utf-8")):
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise ValueError(f"{path}: {module} can't be imported: {error}") from error


def _yaml(group: str) -> Iterator[Path]:
    if not HydraConfig.initialized():
        return
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "file":
            yield from sorted(Path(source.path, group).glob("*.yaml"))
