"""The configuration of a run that is continued: the run's own, with what was given anew."""

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
from dictlearn.ckpt.diff import ABSENT, MAY_CHANGE, refuse_changes
from dictlearn.ckpt.resume import CHECKPOINTS
from dictlearn.commands import argument
from dictlearn.overrides import dotted

OF_THIS_START = ("name", "run_dir", "resume", "allow_changed")  # which run, and not what it is


def continued(verb: str, cfg: DictConfig, checkpoint: Path) -> DictConfig:
    """`cfg` with every value that was not given on the command line as the checkpoint has it.

    The checkpoint's file is data: a `_target_` counts only where a yaml of this installation, or of
    `--config-dir`, names the same one, and nothing in it is interpolated.

    Raises:
        ValueError: lists what was given anew and may not differ.
    """
    saved = read_config(checkpoint)
    given = _given(verb, cfg, saved)
    merged = _merged(OmegaConf.to_container(cfg), saved, given, _targets(), "")
    result = OmegaConf.create(merged)
    # Interpolated values follow the run's folder and name, unless the run had others.
    for key, value in dotted(saved):
        interpolated = "${" in str(_at(merged, key)) and not isinstance(_at(merged, key), dict)
        fixed = not _covered(key, given) and not _covered(key, MAY_CHANGE)
        if interpolated and fixed and _is_plain(value) and OmegaConf.select(result, key) != value:
            OmegaConf.update(result, key, value)
    schema.check(verb, result)
    new = [key for key, _ in dotted(OmegaConf.to_container(result)) if _at(saved, key) is ABSENT]
    now = OmegaConf.to_container(result, resolve=True)
    assert isinstance(now, dict)
    allow = [key for key in new if not _covered(key, given)]
    refuse_changes(saved, {str(k): v for k, v in now.items()}, checkpoint, allow)
    OmegaConf.set_struct(result, True)
    return result


def goes_on(cfg: DictConfig) -> str:
    """How a run that was stopped goes on, in words."""
    if any((Path(cfg.run_dir) / CHECKPOINTS).glob("step-*")):
        return f"to go on: {command(cfg)}"
    return "nothing is saved yet, and the same command starts again"


def command(cfg: DictConfig) -> str:
    """The command line that continues this run, as a shell takes it."""
    program, arguments = sys.argv[0], sys.argv[1:]
    script = program.endswith("train.py")
    words = ["python", program] if script else [Path(program).name, "train"]
    if "--config-dir" in arguments:
        words += arguments[(at := arguments.index("--config-dir")) : at + 2]
    words += ["resume=auto", argument("name", str(cfg.name))]
    if str(cfg.run_dir) != f"runs/{cfg.name}":
        words.append(argument("run_dir", str(cfg.run_dir)))
    return shlex.join(words)


def _given(verb: str, cfg: DictConfig, saved: Mapping[str, Any]) -> set[str]:
    """The keys that the command line sets, each with all below it.

    A group that is given sets all its keys where it builds something else than the run had; else
    those by which its option differs from others that build the same (dict=matryoshka: prefixes).
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
            # By itself: beside another option the rest of the command line may mean nothing.
            sibling = _at(OmegaConf.to_container(config.raw(verb, [f"{group}={other}"])), group)
            if other != option and sibling.get("_target_") == own.get("_target_"):
                there, here = dict(dotted(sibling)), dict(dotted(own))
                keys |= {f"{group}.{key}" for key in here if there.get(key, ABSENT) != here[key]}
    return keys


def _targets() -> set[str]:
    """Everything that a yaml on this command line's search path builds."""
    folders = {str(config.conf_dir())}
    if HydraConfig.initialized():
        sources = HydraConfig.get().runtime.config_sources
        folders |= {source.path for source in sources if source.schema == "file" and source.path}
    found: set[str] = set()
    for folder in folders:
        for path in Path(folder).glob("*/*.yaml"):
            tree = OmegaConf.to_container(OmegaConf.load(path))
            found |= {str(v) for k, v in dotted(tree) if k.rpartition(".")[2] == "_target_"}
    return found


def _merged(
    now: Any, saved: Mapping[str, Any], given: set[str], targets: set[str], prefix: str
) -> dict[str, Any]:
    """The mapping `now` with the saved one's entries, but for what was given."""
    result = {}
    same = now.get("_target_") == saved.get("_target_")
    for name in [*now, *(name for name in saved if name not in now)]:
        key = f"{prefix}{name}"
        old, new = saved.get(name), now.get(name)
        if _covered(key, given) or (
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
            result[name] = _merged(below, old, given, targets, f"{key}.")
        elif isinstance(new, str) and "${" in new:
            result[name] = new
        else:
            result[name] = old if _is_plain(old) else new
    return result


def _is_plain(value: object) -> bool:
    """Nothing that OmegaConf would look up."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return not (isinstance(value, str) and ("${" in value or value == "???"))


def _covered(key: str, names: Any) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _at(tree: Any, key: str) -> Any:
    """The entry of a dotted name; ABSENT where there is none."""
    for name in key.split("."):
        if not isinstance(tree, Mapping) or name not in tree:
            return ABSENT
        tree = tree[name]
    return tree
