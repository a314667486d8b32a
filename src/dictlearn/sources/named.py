"""The name of a text in descriptions of a run and its figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def text_of(data: Mapping[str, Any]) -> str:
    """A name for the text of a configuration's `data`: its path, or the kind of data."""
    if isinstance(parts := data.get("parts"), Mapping) and parts:
        return f"a mixture of {' and '.join(text_of(part) for part in parts.values())}"
    if data.get("path"):
        return f"{data['path']} ({data['name']})" if data.get("name") else str(data["path"])
    paths: Any = data.get("paths")
    if paths:
        paths = [paths] if isinstance(paths, str) else list(paths)
        return str(paths[0]) if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    builder = str(data.get("_target_", "text")).rpartition(".")[2].removesuffix("_windows")
    return "Python's standard library" if builder == "stdlib" else builder
