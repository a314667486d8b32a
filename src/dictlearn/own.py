"""Imports the modules of a user's own that their configuration or the yaml in --config-dir names.

A saved dictionary names its link and its sparsity, and both are looked up among imported classes. Only
the user's own yaml decides what is imported, never the dictionary's file.
"""

from __future__ import annotations

import importlib.util
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

from hydra._internal.utils import _locate
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dictlearn import signatures

HINT = "one of your own is found by --config-dir=<the folder of its yaml>, or once its module is imported"
OURS = ("dictlearn", "lightning")  # packages of the targets in conf/
TARGET = re.compile(r"^\s*_target_:\s*['\"]?([\w.]+)\.\w+", re.MULTILINE)


def import_targets(cfg: DictConfig) -> None:
    """Imports the modules of a user's own that a configuration names, before any work is done.

    Top-level imports of packages that are not installed are found first, from the source: the module
    itself may import torch, which takes seconds.

    Raises:
        ValueError: one sentence with the key, the target, and the module's own error and line.
    """
    for key, target in _targets(OmegaConf.to_container(cfg)):
        if target.partition(".")[0] not in OURS and (why := _not_imported(target)):
            raise ValueError(f"{key}: {target} can't be imported: {why}")


def _targets(tree: object, key: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, target) of everything that a configuration builds."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name == "_target_" and isinstance(value, str):
                yield key, value
            yield from _targets(value, f"{key}.{name}".lstrip("."))


def _not_imported(target: str) -> str:
    """Why a target can't be imported; "" once it is."""
    name, _, member = target.rpartition(".")
    if source := signatures.module(name):
        for line, package in source.packages:
            if importlib.util.find_spec(package) is None:
                return f"{source.path}, line {line}: no module named {package}"
    try:
        _locate(target)
    except Exception as error:  # importing a module may raise anything
        absent = isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name == target
        return f"{name} has no {member}" if absent and source else why_not_imported(error)
    return ""


def why_not_imported(error: BaseException) -> str:
    """The error that stopped an import, with the file and the line of the user's own code."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}: {error.msg}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_own_code(f.filename)]
    return f"{frames[-1].filename}, line {frames[-1].lineno}: {said}" if frames else said


def _is_own_code(file: str) -> bool:
    """Whether a file is neither ours nor of a library, nor a part of the interpreter."""
    libraries = [sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")]
    libraries.append(str(Path(__file__).parent))
    return not file.startswith("<") and not any(Path(file).is_relative_to(p) for p in libraries)


def import_modules(group: str) -> None:
    """Imports the modules that the yaml of a group (dict, sparsity) in the user's folders name.

    Raises:
        ValueError: one of them can't be imported.
    """
    for path in _yaml(group):
        for module in TARGET.findall(path.read_text(encoding="utf-8")):
            try:
                importlib.import_module(module)
            except Exception as error:  # importing a module may raise anything
                why = why_not_imported(error)
                raise ValueError(f"{path}: {module} can't be imported: {why}") from error


def _yaml(group: str) -> Iterator[Path]:
    if not HydraConfig.initialized():
        return
    for source in HydraConfig.get().runtime.config_sources:
        if source.schema == "file":
            yield from sorted(Path(source.path, group).glob("*.yaml"))
