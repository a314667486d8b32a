"""From the records of two trainers to a verdict, and to the table of docs/peers.md."""

from __future__ import annotations

import statistics
from typing import Any

BAR = 1.01  # our FVU at most this times theirs
SPEED_BARS = {"SAELens": 5.0, "sparsify": 1.5}  # their milliseconds a step, in units of ours

Runs = list[dict[str, Any]]  # one record per seed


def verdict(pair: str, ours: Runs, theirs: Runs, equal_settings: bool) -> dict[str, Any]:
    """Medians over seeds, [ours, theirs], and whether the bars are met at equal L0."""
    sides = (ours, theirs)
    fvu = [median(side, "fvu") for side in sides]
    dead = [median(side, "dead") for side in sides]
    return {
        "pair": pair,
        "equal_settings": equal_settings,
        "fvu": fvu,
        "fvu_ratio": fvu[0] / fvu[1],
        "l0": [median(side, "l0") for side in sides],
        "dead": dead,
        "as_trained": {
            "fvu": [median(side, "fvu", "as_trained") for side in sides],
            "l0": [median(side, "l0", "as_trained") for side in sides],
            "dead": [median(side, "dead", "as_trained") for side in sides],
        },
        "fvu_met": fvu[0] <= BAR * fvu[1],
        "dead_met": dead[0] <= dead[1],
    }


def median(runs: Runs, key: str, at: str = "at_equal_l0") -> float:
    return statistics.median(run[at][key] for run in runs)


def table(pairs: list[dict[str, Any]]) -> str:
    """Markdown. L0 in brackets is as trained, before thresholds were scaled to equal L0."""
    rows = [
        "| pair | FVU ours | theirs | ratio | L0 ours | theirs | dead ours | theirs | met |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for pair in pairs:
        fvu, l0, dead = pair["fvu"], pair["as_trained"]["l0"], pair["dead"]
        met = {(True, True): "yes", (True, False): "FVU only", (False, True): "dead only"}
        cells = [
            pair["pair"],
            *(f"{value:.4f}" for value in fvu),
            f"{pair['fvu_ratio']:.3f}",
            *(f"{at:.2f} ({trained:.2f})" for at, trained in zip(pair["l0"], l0, strict=True)),
            *(f"{value:.2%}" for value in dead),
            met.get((pair["fvu_met"], pair["dead_met"]), "no"),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def speed_table(milliseconds: dict[str, dict[str, float]]) -> str:
    """Markdown: a step's median and quartiles, and how many of ours fit into it."""
    rows = ["| | ms a step, median | quartiles | times ours | bar |", "|---|---|---|---|---|"]
    own = milliseconds["dictlearn"]["median_ms"]
    for name, figures in milliseconds.items():
        middle = figures["median_ms"]
        quartiles = f"{figures['quartile_1_ms']:.0f} to {figures['quartile_3_ms']:.0f}"
        bar = f"{SPEED_BARS[name]:g}" if name in SPEED_BARS else ""
        rows.append(f"| {name} | {middle:.1f} | {quartiles} | {middle / own:.2f} | {bar} |")
    return "\n".join(rows)
