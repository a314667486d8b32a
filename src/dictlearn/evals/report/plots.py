"""The pictures: training curves, firing densities, and figures by position."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dictlearn.evals.report.history import Series, loss_terms, series
from dictlearn.evals.report.theme import LEFT, Draw, Palette, plain

LOG_FROM = 8.0  # a larger ratio of maximum to minimum gets a logarithmic axis
POSITION_BINS = 48
FLAT = 0.01  # a curve that stays within this share of its height
NARROW, WIDE = 4.4, 5.6  # inches: three in a row, two in a row
PERCENT = "% of features"
TIDY = (1, 2, 2.5, 5, 10)  # steps between ticks

TRAINING_FIGURES = (  # logged key, title, unit
    ("fvu", "Fraction of variance unexplained", "FVU"),
    ("l0", "L0", "active features per token"),
    ("dead", "Dead features", PERCENT),
    ("lr", "Learning rate", ""),
    ("tokens_per_second", "Training speed", "tokens per second"),
)

COSINES = {  # series without _histogram: title, label of the axis, the figure that is its median
    "nearest_cosine": (
        "Nearest feature",
        "cosine of a decoder vector with the nearest other",
        "nearest_cosine_p50",
    ),
    "alignment": (
        "Encoder and decoder",
        "cosine of a feature's encoder and decoder",
        "alignment_p50",
    ),
}


@dataclass(frozen=True)
class Plot:
    """A picture; `label` describes it to those who cannot see it."""

    name: str
    title: str
    label: str
    draw: Draw
    width: float


def training_plots(history: list[dict[str, float]]) -> list[Plot]:
    """One plot for each figure that the run logged, and one for all terms of the loss."""
    plots: list[Plot] = []
    curves = {"loss": series(history, "loss")} | {
        term: series(history, f"loss/{term}") for term in loss_terms(history)
    }
    curves = {name: curve for name, curve in curves.items() if any(curve[1])}
    if len(curves) == 2:  # one term: it is the loss
        del curves["loss"]
    if curves:
        title = "Loss and its terms" if len(curves) > 1 else "Loss"
        plots.append(_curves("loss", title, curves, "per token"))
    for key, title, unit in TRAINING_FIGURES:
        curve = series(history, key)
        if curve[1] and not (key == "l0" and flat(curve[1])):
            plots.append(_curves(key, title, {title: curve}, unit))
    return plots


def evaluation_plots(record: Mapping[str, Any]) -> list[Plot]:
    plots: list[Plot] = []
    recorded = record["series"]
    if "density_histogram" in recorded:
        plots.append(_density(recorded["density_histogram"], record["figures"]))
    if sum(map(bool, recorded.get("l0_histogram", []))) > 1:
        plots.append(_l0_histogram(recorded["l0_histogram"], record["figures"]))
    for key, (title, xlabel, figure) in COSINES.items():
        if f"{key}_histogram" in recorded:
            median = record["figures"].get(figure)
            plots.append(histogram(key, title, xlabel, recorded[f"{key}_histogram"], median))
    for key, title, unit in (
        ("l0_by_position", "L0 by position", "active features"),
        ("error_by_position", "Error by position", "FVU"),
    ):
        if key in recorded and any(recorded[key][1]):
            values, counts = recorded[key]
            if key != "l0_by_position" or not flat([v for v, n in zip(*recorded[key]) if n]):  # noqa: B905
                plots.append(_by_position(key, title, unit, binned(values, counts, POSITION_BINS)))
    if any(recorded.get("ce_by_position", [[]])[-1]):
        plots.append(_recovered(recorded["ce_by_position"]))
    return plots


def flat(values: Sequence[float]) -> bool:
    """Whether all values are nearly the same, as TopK's L0 on every token."""
    return max(values) - min(values) <= FLAT * abs(max(values))


def _curves(name: str, title: str, curves: Mapping[str, Series], unit: str) -> Plot:
    def draw(axes: Axes, palette: Palette) -> None:
        colours = itertools.cycle(palette.lines)
        for (label, (x, y)), colour in zip(curves.items(), colours, strict=False):
            scaled = [100 * v for v in y] if unit == PERCENT else y
            axes.plot(x, scaled, color=colour, label=label, linewidth=1.4)
        values = [v for _, y in curves.values() for v in y]
        unit_above(axes, _vertical_scale(axes, values, unit), palette)
        axes.set_xlim(left=0)
        axes.set_xlabel("tokens trained on")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=TIDY))
        if len(curves) > 1:
            axes.legend(loc="best")

    ends = ", ".join(f"{label} from {y[0]:.4g} to {y[-1]:.4g}" for label, (_, y) in curves.items())
    return Plot(name, title, f"{title} over training: {ends}", draw, NARROW)


def _vertical_scale(axes: Axes, values: Sequence[float], unit: str) -> str:
    """Chooses the scale and the ticks; returns the axis' label."""
    low, high = min(values), max(values)
    if low > 0 and high > LOG_FROM * low and unit != PERCENT:
        axes.set_yscale("log")
        within = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=within, numticks=8))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        return f"{unit}, log scale".removeprefix(", ")
    scale = 100 if unit == PERCENT else 1
    top = 1.08 * max(high, 0.0) * scale or 1.0  # a height for the axis where all is zero
    axes.set_ylim(bottom=min(0.0, 1.08 * low * scale), top=top)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=TIDY))
    plain = FuncFormatter(lambda v, _: short(v))
    axes.yaxis.set_major_formatter(EngFormatter(sep="") if high >= 1e4 else plain)
    return unit


def short(value: float) -> str:
    """The number without trailing zeros, such as 0.25 or 3e-4."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:g}"


def unit_above(axes: Axes, unit: str, palette: Palette) -> None:
    """Writes the vertical axis' unit horizontally above it."""
    axes.annotate(
        unit, (0, 1), (-LEFT * 72 + 2, 8), xycoords="axes fraction", textcoords="offset points",
        fontsize=9.5, color=palette.muted,
    )  # fmt: skip


def _density(histogram: Sequence[Sequence[float]], figures: Mapping[str, Any]) -> Plot:
    edges, counts = histogram
    width = edges[1] - edges[0] if len(edges) > 1 else 1.0

    def draw(axes: Axes, palette: Palette) -> None:
        axes.bar(edges, counts, width=0.92 * width, align="edge", color=palette.first)
        axes.set_xlim(edges[0], 0)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=TIDY, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: _share(10**v)))
        axes.set_xlabel("share of tokens on which a feature fires")
        unit_above(axes, "features", palette)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TIDY, integer=True))
        axes.axvline(-1, color=palette.muted, linewidth=0.8, linestyle=(0, (2, 2)))

    label = (
        f"Histogram of {sum(counts):.0f} live features by firing density: the median fires on "
        f"{figures['density_p50']:.2g} of tokens, {figures['high_density']:.0f} on more than 10%"
    )
    return Plot("density", "Firing density of live features", label, draw, WIDE)


def _l0_histogram(counts: Sequence[float], figures: Mapping[str, Any]) -> Plot:
    total = sum(counts) or 1.0
    most = max((i for i, count in enumerate(counts) if count), default=0)
    stride = max(1, (most + 1) // 60)
    bins = [sum(counts[i : i + stride]) / total for i in range(0, most + 1, stride)]

    def draw(axes: Axes, palette: Palette) -> None:
        lefts = [i * stride for i in range(len(bins))]
        axes.bar(lefts, [100 * b for b in bins], width=0.92 * stride, color=palette.first)
        axes.set_xlim(-0.5 * stride, max(most * 1.03, 1) + stride)
        axes.set_xlabel("active features on a token")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}%"))
        unit_above(axes, "share of tokens", palette)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TIDY))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=TIDY, integer=True))

    label = (
        f"Histogram of active features per token: median {figures['l0_p50']:.0f}, "
        f"90% between {figures['l0_p05']:.0f} and {figures['l0_p95']:.0f}"
    )
    return Plot("l0_histogram", "L0 over tokens", label, draw, WIDE)


def histogram(
    name: str,
    title: str,
    xlabel: str,
    table: Sequence[Sequence[float]],
    median: float | None = None,
    ends: tuple[str, str] | None = None,
) -> Plot:
    """Histogram of features by a number between the first edge and 1; `ends` names its two ends."""
    edges, counts = table
    width = edges[1] - edges[0] if len(edges) > 1 else 1.0

    def draw(axes: Axes, palette: Palette) -> None:
        axes.bar(edges, counts, width=0.92 * width, align="edge", color=palette.first)
        axes.set_xlim(edges[0], 1.0)
        axes.set_xlabel(xlabel)
        unit_above(axes, "features", palette)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TIDY, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        if ends is not None:
            axes.set_xticks([0, 0.5, 1], [f"0: {plain(ends[0])}", "0.5", f"1: {plain(ends[1])}"])
            left, _, right = axes.xaxis.get_majorticklabels()
            left.set_horizontalalignment("left")
            right.set_horizontalalignment("right")
        if median is not None:
            axes.axvline(median, color=palette.second, linewidth=1, linestyle=(0, (2, 2)))
            axes.annotate(
                f"median {median:.3f}", (median, 1), (4, -2), xycoords=("data", "axes fraction"),
                textcoords="offset points", va="top", fontsize=9, color=palette.second,
                ha="left" if median < 0.7 else "right",
            )  # fmt: skip

    middle = "" if median is None else f", the median {median:.3f}"
    label = f"{title}: histogram of {sum(counts):.0f} live features by {xlabel}{middle}"
    return Plot(name, title, label, draw, WIDE)


def _recovered(table: Sequence[Sequence[float]]) -> Plot:
    """Plots the share of zero ablation's CE increase that the dictionary recovers."""
    own, zero, counts = table
    x, own_y = binned(own, counts, POSITION_BINS)
    zero_y = binned(zero, counts, POSITION_BINS)[1]
    shares = [(p, 1 - a / b) for p, a, b in zip(x, own_y, zero_y, strict=True) if b > 0]
    points = [p for p, _ in shares], [100 * share for _, share in shares]
    title = "Loss recovered by position"
    return _by_position("recovered_by_position", title, "% of what zero ablation costs", points)


def _by_position(name: str, title: str, unit: str, points: Series) -> Plot:
    x, y = points

    def draw(axes: Axes, palette: Palette) -> None:
        axes.plot(x, y, color=palette.first, marker="o", markersize=2.5, linewidth=1.2)
        axes.set_ylim(bottom=min(0, 1.12 * min(y)), top=1.12 * max(*y, 1e-9))
        axes.set_xlim(0, x[-1] + max(x[0], 1))
        axes.set_xlabel("position in the window, tokens")
        unit_above(axes, unit, palette)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TIDY))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=TIDY, integer=True))

    label = f"{title}: {y[0]:.3g} {unit} near position {x[0]:.0f}, {y[-1]:.3g} near {x[-1]:.0f}"
    return Plot(name, title, label, draw, WIDE)


def binned(values: Sequence[float], counts: Sequence[float], n_bins: int) -> Series:
    """(mean positions, means) over at most `n_bins` runs of positions, weighted by their tokens."""
    stride = max(1, -(-len(values) // n_bins))
    x, y = [], []
    for start in range(0, len(values), stride):
        part = range(start, min(start + stride, len(values)))
        weight = sum(counts[p] for p in part)
        if weight > 0:
            x.append(sum(p * counts[p] for p in part) / weight)
            y.append(sum(values[p] * counts[p] for p in part) / weight)
    return x, y


def _share(value: float) -> str:
    """A share of tokens as a percentage, such as 10% or 0.001%."""
    return f"{100 * value:.6f}".rstrip("0").rstrip(".") + "%"
