"""The run's configuration, short enough to read at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

UNNAMED = ("model", "source")  # one target each: its name says nothing
SKIPPED = ("_target_", "_partial_", "_recursive_", "_convert_")


def read_settings(path: Path) -> str:
    """config.yaml as text; empty when there is none."""
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def summary(settings: str) -> list[tuple[str, str]]:
    """(group, its values on one line) for the groups that say what was trained.

    Raises:
        ValueError: one sentence where it is no configuration.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.create(settings), resolve=False)
        return _groups(config if isinstance(config, dict) else {})
    except (YAMLError, OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"config.yaml is not a run's configuration: {reason}") from None


def _groups(config: Mapping[Any, Any]) -> list[tuple[str, str]]:
    found = [("steps", _steps(config)), ("seed", str(config.get("seed", "")))]
    for group in ("model", "data", "dict", "sparsity", "objective", "optim", "schedule", "source"):
        if isinstance(config.get(group), dict):
            found.append((group, _line(config[group], named=group not in UNNAMED)))
    return [(name, value) for name, value in found if value]


def _steps(config: Mapping[Any, Any]) -> str:
    if "steps" not in config:
        return ""
    tokens = config.get("batch_tokens")
    return f"{config['steps']:,}" + (f" of {tokens:,} tokens" if tokens else "")


def _line(group: Mapping[Any, Any], named: bool) -> str:
    """The target's own name, then its plain settings; nested targets by name."""
    words = []
    if named and "_target_" in group:
        words.append(str(group["_target_"]).rpartition(".")[2])
    for key, value in group.items():
        if key in SKIPPED or value is None or value == []:
            continue
        if isinstance(value, Mapping):
            words += [str(key)] if "_target_" in value else map(str, value)
        else:
            words.append(f"{key} {_plain(value)}")
    return ", ".join(words)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)
