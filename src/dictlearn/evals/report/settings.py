"""Reads a run's configuration and summarises it in a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dictlearn.disk.errors import content_error

UNNAMED = ("model", "source")  # groups with one target each, whose name is left out
SKIPPED = ("_target_", "_partial_", "_recursive_", "_convert_")


def read_settings(path: Path) -> str:
    """config.yaml as text; "" where there is none. Raises ValueError for a damaged one."""
    if not path.is_file():
        return ""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a run's configuration ({content_error(error)})") from error
    try:
        parsed(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return text


class _Loader(yaml.SafeLoader):
    """Refuses aliases: a few lines of them can expand to more than memory holds."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("an alias")
        return super().compose_node(parent, index)


def parsed(settings: str) -> dict[Any, Any]:
    """A run's configuration. Raises ValueError for other text."""
    try:
        config = yaml.load(settings, Loader=_Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"not a run's configuration ({type(error).__name__})") from error
    if not isinstance(config, dict):
        raise ValueError("not a run's configuration")
    return config


def summary(settings: str) -> list[tuple[str, str]]:
    """(group, its values on one line) for the groups that describe the training.

    Raises:
        ValueError: `settings` is no configuration.
    """
    config = parsed(settings)
    try:
        return _groups(config)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"config.yaml is not a run's configuration ({content_error(error)})"
        ) from None


def _groups(config: Mapping[Any, Any]) -> list[tuple[str, str]]:
    rows = [("steps", _steps(config)), ("seed", str(config.get("seed", "")))]
    for group in ("model", "data", "dict", "sparsity", "objective", "optim", "schedule", "source"):
        if isinstance(config.get(group), dict):
            rows.append((group, group_line(config[group], named=group not in UNNAMED)))
    return [(name, value) for name, value in rows if value]


def _steps(config: Mapping[Any, Any]) -> str:
    if "steps" not in config:
        return ""
    tokens = config.get("batch_tokens")
    return f"{config['steps']:,}" + (f" of {tokens:,} tokens" if tokens else "")


def group_line(group: Mapping[Any, Any], named: bool) -> str:
    """The target's name, then its plain settings; nested targets are given by name."""
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
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return str(value)
