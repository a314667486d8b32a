"""Pareto curves: the best rate of a concept within a budget of KL, and the area under it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dictlearn.interventions.concept.settings import NONE
from dictlearn.interventions.intervals import interval

MEASURES = ("rate", "kl", "ce_increase", "whole", "repetition")


def area(points: Sequence[tuple[float, float]], limit: float) -> float:
    """Mean over KL budgets from 0 to `limit` of the best gain that the budget buys.

    `points` are (KL, gain of the wanted rate). No change is always to be had, so gains start at 0.
    """
    total, best, last = 0.0, 0.0, 0.0
    for kl, gain in sorted(points):
        if kl >= limit:
            break
        total += best * (kl - last)
        best, last = max(best, gain), kl
    return (total + best * (limit - last)) / limit


def summary(
    cells: Sequence[Mapping[str, Any]], methods: Sequence[str], wanted: str, limit: float
) -> list[dict[str, Any]]:
    """Each method's curve (means over seeds by strength) and area, both with 95% intervals.

    The unchanged model comes first, then the methods by area.
    """
    seeds = sorted({cell["seed"] for cell in cells})
    base = {cell["seed"]: cell["rate"] for cell in cells if cell["method"] == NONE}
    sign = 1 if wanted == "more" else -1
    rows = []
    for method in (NONE, *methods):
        own = [cell for cell in cells if cell["method"] == method]
        areas = [
            area([(c["kl"], sign * (c["rate"] - base[seed])) for c in own if c["seed"] == seed], limit)
            for seed in seeds
        ]  # fmt: skip
        rows.append({"method": method, "area": interval(areas)._asdict(), "points": _points(own)})
    return [rows[0], *sorted(rows[1:], key=lambda row: -row["area"]["mean"])]


def _points(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    strengths = dict.fromkeys(cell["strength"] for cell in cells)
    points = []
    for strength in strengths:
        same = [cell for cell in cells if cell["strength"] == strength]
        values = {
            name: interval([cell[name] for cell in same])._asdict()
            for name in MEASURES
            if all(cell[name] is not None for cell in same)
        }
        points.append({"strength": strength, **values})
    return points
