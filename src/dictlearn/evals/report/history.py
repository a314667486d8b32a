"""Reads metrics.jsonl, the figures that a run logged while it trained."""

from __future__ import annotations

import json
import sys
from pathlib import Path

Series = tuple[list[float], list[float]]  # x, y


def read_history(path: Path) -> list[dict[str, float]]:
    """One dict of numbers for each logged step, in order; no file means nothing was logged.

    A killed run may end in half a line, which is left out; a resumed one repeats steps, whose later
    entries replace the earlier.
    """
    if not path.is_file():
        return []
    by_step: dict[float, dict[str, float]] = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict) and _is_finite_number(entry.get("step")):
            numbers = {key: value for key, value in entry.items() if _is_finite_number(value)}
            by_step.setdefault(entry["step"], {}).update(numbers)
    return [by_step[step] for step in sorted(by_step)]


def series(history: list[dict[str, float]], key: str) -> Series:
    """The points at which `key` was logged, over tokens where those are known, else steps."""
    points = [(entry.get("tokens", entry["step"]), entry[key]) for entry in history if key in entry]
    return [x for x, _ in points], [y for _, y in points]


def loss_terms(history: list[dict[str, float]]) -> list[str]:
    """Names of the terms logged as loss/<term>, in the order they first appear."""
    keys = dict.fromkeys(key for entry in history for key in entry if key.startswith("loss/"))
    return [key.removeprefix("loss/") for key in keys]


def _is_finite_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= sys.float_info.max  # False for NaN; an int may be larger
