"""The configuration of a continued run: the saved one, with the keys of the new command line."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from dictlearn import config, schema
from dictlearn.ckpt.checkpoint_io import read_config
from dictlearn.ckpt.diff import ABSENT, MAY_CHANGE, covered, refuse_changes
from dictlearn.ckpt.resume import CHECKPOINTS
from dictlearn.commands import argument, is_script, program
from dictlearn.overrides import dotted

OF_THIS_START = (
    "name",
    "run_dir",
    "resume",
    "allow_changed",
)  # keys that choose a run and do not describe it


def continued(verb: str, cfg: DictConfig, checkpoint: Path) -> DictConfig:
    """`cfg`, with the checkpoint's value for every key that the command line does not set.

    The checkpoint's file is data: a `_target_` counts only where a yaml of this installation, or of
    `--config-dir`, names the same one, and nothing in it is interpolated.

    Raises:
        ValueError: lists the keys that were set anew and may not differ.
    """
    saved = read_config(checkpoint)
    set_keys = _set_keys(verb, cfg, saved)
    merged = _merged(OmegaConf.to_container(cfg), saved, set_keys, _targets(), "")
    result = OmegaConf.create(merged)
    # Interpolated values follow the run's folder and name, unless the run had others.
    for key, value in dotted(saved):
        interpolated = "${" in str(_at(merged, key)) and not isinstance(_at(merged, key), dict)
        fixed = not covered(key, set_keys) and not covered(key, MAY_CHANGE)
        if interpolated and fixed and _is_plain(value) and OmegaConf.select(result, key) != value:
            OmegaConf.update(result, key, value)
    schema.check(verb, result)
    new = [key for key, _ in dotted(OmegaConf.to_container(result)) if _at(saved, key) is ABSENT]
    now = OmegaConf.to_container(result, resolve=True)
    assert isinstance(now, dict)
    allow = [key for key in new if not covered(key, set_keys)]
    refuse_changes(saved, {str(k): v for k, v in now.items()}, checkpoint, allow)
    OmegaConf.set_struct(result, True)
    return result


def goes_on(cfg: DictConfig) -> str:
    """A sentence on how to continue a stopped run."""
    if any((Path(cfg.run_dir) / CHECKPOINTS).glob("step-*")):
        return f"to go on: {command(cfg)}"
    return "nothing is saved yet, and the same command starts again"


def command(cfg: DictConfig) -> str:
    """The command line that continues this run, as a shell takes it."""
    words, arguments = [*program(), *([] if is_script() else ["train"])], sys.argv[1:]
    if "--config-dir" in arguments:
        words += arguments[(at := arguments.index("--config-dir")) : at + 2]
    words += ["resume=auto", argument("name", str(cfg.name))]
    if str(cfg.run_dir) != f"runs/{cfg.name}":
        words.append(argument("run_dir", str(cfg.run_dir)))
    return shlex.join(words)


def _set_keys(verb: str, cfg: DictConfig, saved: Mapping[str, Any]) -> set[str]:
    """The keys that the command line sets, each with all below it.

    A group sets all its keys if it builds another class than the run had. Otherwise it sets the keys
    by which its option differs from others of that class (dict=matryoshka: prefixes).
    """
    if not HydraConfig.initialized():
        return {str(key) for key in cfg}
    groups = config.groups(verb)
    tree = OmegaConf.to_container(cfg)
    keys: set[str] = {*OF_THIS_START}
    for text in HydraConfig.get().overrides.task:
        group, _, option = text.partition("=")
        if group not in groups:
            keys.add(group.lstrip("+~"))
            continue
        own = _at(tree, group)
        if not isinstance(own, dict) or own.get("_target_") != _at(saved, f"{group}._target_"):
            keys.add(group)
            continue
        for other in config.options(group):
            # It is composed alone: the rest of the command line may not fit another option.
            sibling = _at(OmegaConf.to_container(config.raw(verb, [f"{group}={other}"])), group)
            if other != option and sibling.get("_target_") == own.get("_target_"):
                there, here = dict(dotted(sibling)), dict(dotted(own))
                keys |= {f"{group}.{key}" for key in here if there.get(key, ABSENT) != here[key]}
    return keys


def _targets() -> set[str]:
    """Every `_target_` of the yaml on this command line's search path."""
    folders = {str(config.conf_dir())}
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders |= {source.path for source in sources if source.schema == "file" and source.path}
    targets: set[str] = set()
    for folder in folders:
        for path in Path(folder).glob("*/*.yaml"):
            tree = OmegaConf.to_container(OmegaConf.load(path))
            targets |= {str(v) for k, v in dotted(tree) if k.rpartition(".")[2] == "_target_"}
    return targets


def _merged(
    now: Any, saved: Mapping[str, Any], set_keys: set[str], targets: set[str], prefix: str
) -> dict[str, Any]:
    """The mapping `now`, with the saved entries for all keys that were not set anew."""
    result = {}
    same = now.get("_target_") == saved.get("_target_")
    for name in [*now, *(name for name in saved if name not in now)]:
        key = f"{prefix}{name}"
        old, new = saved.get(name), now.get(name)
        if covered(key, set_keys) or (
            name not in saved and (same and "_target_" in now or not prefix)
        ):
            if name in now:  # ~key leaves it out
                result[name] = new
        elif name not in saved:
            continue  # another target's argument, or an entry that the run had left out
        elif isinstance(old, dict):
            if str(old.get("_target_", "")) not in targets | {""}:
                result |= {name: new} if name in now else {}
                continue
            below = new if isinstance(new, dict) else {}
            result[name] = _merged(below, old, set_keys, targets, f"{key}.")
        elif isinstance(new, str) and "${" in new:
            result[name] = new
        else:
            result[name] = old if _is_plain(old) else new
    return result


def _is_plain(value: object) -> bool:
    """Whether OmegaConf would look nothing up in a value."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not (isinstance(value, str) and ("${" in value or value == "???"))


def _at(tree: Any, key: str) -> Any:
    """The entry of a dotted name; ABSENT where there is none."""
    for name in key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return ABSENT
        tree = tree[name]
    return tree
