"""Charts of FVU and CE increase against L0, with one point per run."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from dictlearn.evals.report.compared.read import Run, differing, in_order, number
from dictlearn.evals.report.plots import LOG_FROM, TIDY, WIDE, Plot, short, unit_above
from dictlearn.evals.report.theme import Palette, plain

AGAINST_L0 = (("fvu", "FVU against L0", "FVU"), ("ce_increase", "CE increase against L0", "nats"))
NAMED = 24  # points up to which each is labelled
LOG_FROM_L0 = 3.0  # L0 is chosen in doublings
LEGEND = 8  # lines up to which there is a legend; more are told apart by the table
MARKERS = "osD^vP"


def anchor(number: int) -> str:
    """A point's placeholder link, which the page replaces by the run's address."""
    return f"run:{number}"


def plots(runs: Sequence[Run]) -> list[Plot]:
    """The charts for which at least two runs have both figures."""
    charts = []
    for key, title, unit in AGAINST_L0:
        points = {
            i: (x, y)
            for i, run in enumerate(runs)
            if (x := run.figure("l0")) is not None and (y := run.figure(key)) is not None
        }
        if len(points) > 1:
            charts.append(_plot(key, title, unit, runs, points))
    return charts


def _plot(
    name: str, title: str, unit: str, runs: Sequence[Run], points: Mapping[int, tuple[float, float]]
) -> Plot:
    moves = mover([runs[i] for i in points])
    lines = grouped(runs, list(points), moves)

    def draw(axes: Axes, palette: Palette) -> None:
        for n, (label, members) in enumerate(lines.items()):
            colour = palette.lines[n % len(palette.lines)]
            marker = MARKERS[n // len(palette.lines) % len(MARKERS)]
            if moves is not None:
                x, y = zip(*(points[i] for i in members), strict=True)
                axes.plot(x, y, color=colour, linewidth=1.1, alpha=0.45)
            for i in members:
                x, y = points[i]
                axes.plot(x, y, marker, color=colour, markersize=7, url=anchor(i))
                if len(points) <= NAMED:
                    text = runs[i].name if moves is None else runs[i].settings[moves]
                    axes.annotate(
                        plain(text), points[i], (0, 7), textcoords="offset points",
                        ha="center", fontsize=8, color=palette.muted,
                    )  # fmt: skip
            if label:
                axes.plot([], [], color=colour, marker=marker, markersize=6, label=plain(label))
        _scale(axes, "x", [x for x, _ in points.values()])
        _scale(axes, "y", [y for _, y in points.values()])
        axes.set_xlabel("L0, active features per token")
        unit_above(axes, unit + (f", points by {plain(moves)}" if moves else ""), palette)
        axes.grid(visible=True, axis="both")
        if 1 < len(lines) <= LEGEND:
            axes.legend(loc="best")

    best = min(points, key=lambda i: points[i][1])
    label = (
        f"{title} of {len(points)} runs, L0 from {min(x for x, _ in points.values()):.3g} to "
        f"{max(x for x, _ in points.values()):.3g}; the least, {points[best][1]:.3g}, at "
        f"{points[best][0]:.3g}"
    )
    return Plot(name, title, label, draw, WIDE)


def mover(runs: Sequence[Run]) -> str | None:
    """The numeric setting along which L0 changes most; lines join runs that differ in it alone.

    None where no two runs differ in one numeric setting alone.
    """
    spreads: dict[str, float] = {}
    for key in differing(runs):
        by_value: defaultdict[str, list[float]] = defaultdict(list)
        for run in runs:
            by_value[run.settings[key]].append(run.figure("l0") or 0.0)
        means = [sum(values) / len(values) for values in by_value.values()]
        if all(number(value) is not None for value in by_value):
            spreads[key] = max(means) - min(means)
    for key in sorted(spreads, key=lambda key: -spreads[key]):
        if any(len(line) > 1 for line in grouped(runs, range(len(runs)), key).values()):
            return key
    return None


def grouped(runs: Sequence[Run], members: Sequence[int], moves: str | None) -> dict[str, list[int]]:
    """Label -> the runs of one line, which differ only in `moves`, sorted by it."""
    if moves is None:
        return {"": list(members)}
    others = [key for key in differing([runs[i] for i in members]) if key != moves]
    lines: dict[str, list[int]] = {}
    for i in sorted(members, key=lambda i: number(runs[i].settings[moves]) or 0.0):
        label = ", ".join(f"{key} {runs[i].settings[key]}" for key in others)
        lines.setdefault(label, []).append(i)
    return {label: lines[label] for label in in_order(lines)}


def _scale(axes: Axes, axis: str, values: Sequence[float]) -> None:
    """Sets limits with a margin, and a logarithmic scale where the values span much."""
    low, high = min(values), max(values)
    is_x = axis == "x"
    own, set_scale, set_limits = (
        (axes.xaxis, axes.set_xscale, axes.set_xlim)
        if is_x
        else (axes.yaxis, axes.set_yscale, axes.set_ylim)
    )
    if low > 0 and high > (LOG_FROM_L0 if is_x else LOG_FROM) * low:
        set_scale("log")
        set_limits(low / 1.35, high * 1.6)
        own.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        own.set_minor_formatter(NullFormatter())
    else:
        margin = 0.12 * (high - low) or 0.1 * abs(high) or 1.0
        least = low - margin
        set_limits(max(0.0, least) if low >= 0 else least, high + 1.6 * margin)
        own.set_major_locator(MaxNLocator(5, steps=TIDY))
    own.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
