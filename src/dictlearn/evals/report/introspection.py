"""The picture of an introspection study: how far an injection moves yes against no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dictlearn.evals.report.plots import TIDY, Plot, short, unit_above
from dictlearn.evals.report.theme import Palette

WIDTH = 7.2
LINES = {  # curve of the record: its name in the picture
    "introspection, concept": "concept, asked about injection",
    "introspection, placebo": "placebo, asked about injection",
    "unrelated, concept": "concept, unrelated questions",
    "unrelated, placebo": "placebo, unrelated questions",
}


def introspection_plot(record: Mapping[str, Any]) -> Plot:
    """Mean shifts of logit(yes) - logit(no) by strength, with 95% intervals over concepts."""
    strengths: Sequence[float] = record["strengths"]

    def draw(axes: Axes, palette: Palette) -> None:
        axes.axhline(0, color=palette.muted, linewidth=0.8)
        for (name, label), colour in zip(LINES.items(), palette.lines, strict=True):
            points = record["curves"][name]
            dashes = "--" if "placebo" in name else "-"
            low, high = ([point[end] for point in points] for end in ("low", "high"))
            axes.fill_between(strengths, low, high, color=colour, alpha=0.12, linewidth=0)
            mean = [point["mean"] for point in points]
            axes.plot(strengths, mean, dashes, color=colour, label=label, marker="o", markersize=3)
        axes.set_xscale("log")
        axes.set_xticks(strengths, [f"{strength:g}" for strength in strengths])
        axes.minorticks_off()
        axes.margins(x=0.03)
        axes.set_xlabel("strength, times the concept's vector")
        unit_above(axes, "shift of logit(yes) − logit(no)", palette)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TIDY))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        axes.legend(
            loc="center left",
            bbox_to_anchor=(1.01, 0.5),
            title="means; bands: 95% over concepts",
            alignment="left",
        )
        axes.set_position((0.08, 0.18, 0.5, 0.66))

    last = {name: record["curves"][name][-1]["mean"] for name in LINES}
    said = ", ".join(f"{label} {last[name]:+.2f}" for name, label in LINES.items())
    label = f"Shift of yes against no at strength {strengths[-1]:g}: {said}"
    return Plot("introspection", f"Injected concepts in {record['model']}", label, draw, WIDTH)
