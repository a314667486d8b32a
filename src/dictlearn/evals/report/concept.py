"""The page of a concept study: rate against KL for every method, and what each buys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dictlearn.escape import html as escape
from dictlearn.evals.report.parts import section
from dictlearn.evals.report.plots import TIDY, Plot, short, unit_above
from dictlearn.evals.report.theme import Palette, inline_svg, plain

WIDTH = 8.2
CONTROLS = ("random_direction", "random_feature", "prefix")
FITTED = ("mean", "pca", "logistic")
MARKERS, DASHES = "osD^vPX", ("-", "--", ":", "-.")
HEADS = {
    "rate": "Rate of the concept",
    "kl": "KL per token",
    "ce_increase": "CE increase",
    "whole": "Whole",
    "repetition": "Repetition",
}
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}
</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lede">{lede}</p>
</header>
<main>
{sections}
</main>
</body>
</html>
"""


def concept_plot(record: Mapping[str, Any]) -> Plot:
    """A curve for each method: the rate of the concept against KL on unrelated text, by strength."""
    results = record["results"]
    base = results[0]["points"][0]["rate"]

    def draw(axes: Axes, palette: Palette) -> None:
        colours = {"feature": palette.first, "fitted": palette.second, "control": palette.muted}
        seen = dict.fromkeys(colours, 0)
        axes.axhline(100 * base["mean"], color=palette.rule, linewidth=1.2)
        for row in results[1:]:
            kind = kind_of(row["method"])
            number, seen[kind] = seen[kind], seen[kind] + 1
            points = sorted(row["points"], key=lambda point: point["kl"]["mean"])
            x = [0.0, *(point["kl"]["mean"] for point in points)]
            y = [100 * base["mean"], *(100 * point["rate"]["mean"] for point in points)]
            style = DASHES[number % len(DASHES)]
            marker = MARKERS[number % len(MARKERS)]
            axes.plot(
                x, y, style, color=colours[kind], marker=marker, markersize=4, linewidth=1.2,
                label=plain(row["method"]),
            )  # fmt: skip
        widest = 1.5 * record["settings"]["kl_limit"]
        shown = [p for row in results for p in row["points"] if p["kl"]["mean"] <= widest]
        axes.set_xlim(0, widest)
        axes.set_ylim(0, min(100, 130 * max(p["rate"]["mean"] for p in shown) or 100))
        axes.axvline(record["settings"]["kl_limit"], color=palette.rule, linewidth=0.8)
        axes.set_xlabel("KL per token on unrelated held-out text, nats")
        unit_above(axes, "% of outputs with the concept", palette)
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=TIDY))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda v, _: short(round(v, 6))))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TIDY))
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        axes.set_position((0.07, 0.18, 0.62, 0.66))

    first = results[1]
    label = (
        f"Rate of the concept against KL: {base['mean']:.0%} without a change; the largest area is "
        f"that of {first['method']}, {first['area']['mean']:.3f}"
    )
    wanted = record["settings"]["wanted"]
    return Plot("pareto", f"{plain(record['name'])}: {wanted} of it", label, draw, WIDTH)


def kind_of(method: str) -> str:
    name = method.partition("@")[0]
    return "control" if name in CONTROLS else "fitted" if name in FITTED else "feature"


def concept_page(record: Mapping[str, Any]) -> str:
    """The whole HTML document; it needs no network."""
    plot = concept_plot(record)
    svg = inline_svg(plot.draw, plot.name, escape(plot.label), plot.width)
    settings = record["settings"]
    note = (
        f"Means over {settings['seeds']} seeds of {settings['n_prompts']} prompts each. The grey line "
        "across is the model without a change. KL counts to the upright line for the areas."
    )
    about = (
        f"By area: the mean gain of the wanted rate over KL budgets up to {settings['kl_limit']:g}."
    )
    methods = f"{about} Intervals are 95% of Student's t over seeds."
    every = "Means over seeds, and half the width of their 95% interval."
    sections = [
        section("Rate against KL", note, f"<figure>{svg}</figure>"),
        section("Methods", methods, _areas(record)),
        section("Every cell", every, _cells(record)),
        _section_of_settings(record),
    ]
    return PAGE.format(
        title=escape(f"Steering: {record['name']}"),
        style=(files("dictlearn.evals.report") / "style.css").read_text(encoding="utf-8").strip(),
        lede=_lede(record),
        sections="\n".join(sections),
    )


def _lede(record: Mapping[str, Any]) -> str:
    what = escape(str(record["settings"]["pattern"] or record["settings"]["value"]))
    return (
        f"How often <code>{what}</code> is in what {escape(record['model'])} writes; the feature is "
        f"<b>{escape(record['feature'])}</b> of a dictionary on {escape(record['site'])}."
    )


def _areas(record: Mapping[str, Any]) -> str:
    def cells(row: Mapping[str, Any]) -> Iterator[str]:
        yield f"{row['area']['mean']:+.3f}"
        low, high = row["area"]["low"], row["area"]["high"]
        yield "the same for every seed" if low == high else f"{low:+.3f} to {high:+.3f}"

    rows = [([row["method"]], list(cells(row))) for row in record["results"][1:]]
    return _table(["Method"], ["Area", "95%"], rows)


def _cells(record: Mapping[str, Any]) -> str:
    rows = []
    for row in record["results"]:
        for point in row["points"]:
            strength = "" if point["strength"] is None else f"{point['strength']:g}"
            shown = [interval_text(point.get(name)) for name in HEADS]
            rows.append(([row["method"], strength], shown))
    return _table(["Method", "Strength"], list(HEADS.values()), rows)


def interval_text(value: Mapping[str, float] | None) -> str:
    """A mean and half the width of its interval."""
    if value is None:
        return "none"
    return f"{value['mean']:.3f} ± {value['high'] - value['mean']:.3f}"


def _table(
    labels: Sequence[str], heads: Sequence[str], rows: Sequence[tuple[Sequence[str], Sequence[str]]]
) -> str:
    head = "".join(f'<th scope="col">{escape(one)}</th>' for one in (*labels, *heads))
    body = "\n".join(
        "<tr>"
        + "".join(f'<th scope="row">{escape(label)}</th>' for label in names)
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for names, cells in rows
    )
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f'<div class="scroll">{table}</div>'


def _section_of_settings(record: Mapping[str, Any]) -> str:
    rows = [([name], [str(value)]) for name, value in record["settings"].items()]
    return section("Settings", "The keys of the study.", _table(["Key"], ["Value"], rows))
