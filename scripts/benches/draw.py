"""Pictures of what is on record, for README and docs/performance.md; light and dark.

Bars: how many of our steps a step of the others takes, newest record of each case. Curves: time a token
against size, with the fitted line and its exponent.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benches.cases import DENSE, OURS, OURS_FLOAT32, SAELENS, SPARSIFY
from benches.curves import ENCODER
from dictlearn.evals.report.theme import LIGHT, PNG_DPI, Palette, style

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "img"
DARK = Palette(
    ink="#e5e7ea", muted="#9ba2aa", rule="#2f343a", paper="#15171a",
    first="#72b0ee", second="#ef945c", third="#6fc08d", fourth="#bb9ae2",
)  # fmt: skip
PALETTES = {"light": LIGHT, "dark": DARK}
SAES, AXES = ("sae-8k", "sae-24k", "sae-65k", "sae-131k"), ("F", "k", "L", "B")
# Whose figures stand beside one another in the documents: a GPU's, a CPU's by its vectors.
KINDS = ("avx512", "avx2", "cpu", "cuda")
NAMES = {"step": "case", "curve": "curve", "op": "op"}
WORDS = {"F": "features F", "k": "active features k", "L": "layers L of a CLT", "B": "tokens B"}


def pictures(results: Path, folder: Path) -> list[Path]:
    """Draws everything that results/bench.json has figures for; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for kind in KINDS:
        records = newest(results, kind)
        steps = [records[name] for name in SAES if name in records]
        curves = [records[name] for name in AXES if name in records]
        for shade, palette in PALETTES.items():
            with matplotlib.rc_context(style(palette)):
                for what, found, draw in (("steps", steps, bars), ("cost", curves, lines)):
                    if found:
                        target = folder / f"{what}-{kind}-{shade}.png"
                        save(draw(found, palette), target)
                        written.append(target)
    return written


def newest(results: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The last record of every case, curve and operation of a kind of machine, by its name."""
    path = results / "bench.json"
    if not path.exists():
        raise ValueError(f"{path}: no figures yet; want those of steps or curves first")
    records = [record for record in json.loads(path.read_text()) if kind_of(record) == kind]
    return {record[NAMES[record["part"]]]: record for record in records}


def kind_of(record: Mapping[str, Any]) -> str:
    """Which of KINDS a record was taken on; those that don't name instructions, on a CPU with AVX2."""
    if record.get("device") == "cuda":
        return "cuda"
    instructions = record["machine"].get("instructions", ["avx2"])
    named = {"avx512f": "avx512", "avx2": "avx2"}
    return next((kind for name, kind in named.items() if name in instructions), "cpu")


def save(figure: Figure, path: Path) -> None:
    """Replaces the file at once: a picture that is read meanwhile is whole."""
    draft = path.with_suffix(".new.png")
    figure.savefig(draft, dpi=PNG_DPI, metadata={"Software": None})
    os.replace(draft, path)


def colours(palette: Palette) -> dict[str, str]:
    others = {SPARSIFY: palette.second, SAELENS: palette.third, DENSE: palette.fourth}
    return {OURS: palette.first, OURS_FLOAT32: palette.first, ENCODER: palette.muted, **others}


def bars(records: Sequence[dict[str, Any]], palette: Palette) -> Figure:
    """One panel a case: everybody's milliseconds a step, shortest first."""
    rows = max(len(record["a_step"]) for record in records)
    width, height = 8.0, 0.95 + 0.3 * rows
    figure = Figure(figsize=(width, height))
    each = width / len(records)
    for place, record in enumerate(records):
        left, bottom = place * each + 1.75, 0.2
        axes = figure.add_axes(
            (left / width, bottom / height, (each - 2.55) / width, (height - 0.95) / height)
        )
        panel(axes, record, palette, rows)
        size = record["size"]
        title = f"{size['B']:,} tokens, width {size['D']:,}, {size['F']:,} features, k={size['k']}"
        at = place * each + 0.12
        figure.text(
            at / width, 1 - 0.27 / height, "ms a training step", fontweight="bold", fontsize=10
        )
        figure.text(at / width, 1 - 0.5 / height, title, color=palette.muted, fontsize=8.5)
    return figure


def panel(axes: Axes, record: dict[str, Any], palette: Palette, rows: int) -> None:
    steps = sorted(record["a_step"].items(), key=lambda item: item[1]["median_ms"])
    own = record["a_step"][OURS]["median_ms"]
    longest = steps[-1][1]["median_ms"]
    for row, (who, figures) in enumerate(steps):
        middle = figures["median_ms"]
        ours = who in (OURS, OURS_FLOAT32)
        axes.barh(row, middle, height=0.62, color=palette.first if ours else palette.muted)
        times = "" if ours else f"  {middle / own:.1f}×"
        axes.text(
            middle + 0.02 * longest, row, f"{middle:,.0f}{times}", va="center", fontsize=9,
            color=palette.ink,
        )  # fmt: skip
    axes.set_yticks(range(len(steps)), [who for who, _ in steps])
    axes.tick_params(axis="y", labelcolor=palette.ink, labelsize=9)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.grid(visible=False)
    axes.set_xlim(0, 1.4 * longest)  # the longest bar's figures stand in it too
    axes.set_ylim(rows - 0.5, -0.5)


def lines(records: Sequence[dict[str, Any]], palette: Palette) -> Figure:
    """One panel a curve, two beside each other, both axes logarithmic: points, the fit through them, its
    exponent.
    """
    rows = -(-len(records) // 2)
    width, each, tall, head = 8.0, 4.0, 2.75, 0.45
    height = head + rows * tall
    figure = Figure(figsize=(width, height))
    colour = colours(palette)
    for place, record in enumerate(records):
        left, bottom = place % 2 * each + 0.62, height - head - (place // 2 + 1) * tall + 0.55
        axes = figure.add_axes(
            (left / width, bottom / height, (each - 0.78) / width, (tall - 0.62) / height)
        )
        values = record["values"]
        for who, times in record["microseconds_per_token"].items():
            fit = record["fits"][who]
            tokens = record["size"]["B"]
            fitted = [1e3 * fit["factor"] * v ** fit["exponent"] / tokens for v in values]
            axes.plot(values, fitted, color=colour[who], linewidth=1.2)
            label = f"{fit['exponent']:.2f} ± {fit['error']:.2f}"
            axes.plot(values, times, "o", color=colour[who], markersize=3.5, label=label)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(values, [_short(value) for value in values])
        axes.set_xlabel(WORDS[record["curve"]])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.35)  # room for the exponents
        axes.margins(x=0.06)
        axes.tick_params(which="minor", left=False)
        axes.tick_params(labelsize=8)
        axes.legend(loc="upper left", ncols=3, fontsize=8, handletextpad=0.2, borderaxespad=0.0)
        if place % 2 == 0:
            axes.set_ylabel("µs a token")
    top = 1 - 0.27 / height
    figure.text(0.12 / width, top, "Time a token, and its exponent", fontweight="bold", fontsize=10)
    names = [Line2D([], [], color=colour[who], label=who) for who in (OURS, DENSE, ENCODER)]
    figure.legend(handles=names, loc="upper right", ncols=3, fontsize=8.5, borderaxespad=0.4)
    return figure


def _short(value: int) -> str:
    return f"{value // 1024}k" if value >= 1024 and value % 1024 == 0 else str(value)
