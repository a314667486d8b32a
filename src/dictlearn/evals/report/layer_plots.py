"""The pictures of a dictionary over several layers: error, L0 and decoder norms by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dictlearn.evals.report.plots import TIDY, WIDE, Plot, flat, histogram, short, unit_above
from dictlearn.evals.report.theme import Palette
from dictlearn.evals.table import dictionaries

WRITTEN_OUT = 12  # layers up to which a heat map's cells hold their numbers
FEW_TICKS = 16


def layer_plots(record: Mapping[str, Any]) -> list[Plot]:
    """The plots whose figures are in the record."""
    plots = [
        plot
        for name, title, unit, key, sites in (
            ("fvu_by_layer", "Error by layer", "FVU", "fvu", "targets"),
            ("l0_by_layer", "L0 by layer", "active features per token", "l0", "sources"),
        )
        if (plot := _by_layer(record, name, title, unit, key, sites)) is not None
    ]
    series, targets = record["series"], record["dictionary"]["targets"]
    if "decoder_norms" in series:
        plots.append(_heat_map(series["decoder_norms"], record["dictionary"]))
    if "relative_norm_histogram" in series:
        xlabel = "the second target's share of a feature's decoder norms"
        table, ends = series["relative_norm_histogram"], (targets[0], targets[1])
        plots.append(histogram("relative_norm", "Relative decoder norm", xlabel, table, ends=ends))
    if "largest_share_histogram" in series:
        xlabel = "share of a feature's decoder norms on the target it writes most to"
        table = series["largest_share_histogram"]
        plots.append(histogram("largest_share", "Norm on one target", xlabel, table))
    if "strongest_target" in series:
        plots.append(_strongest(series["strongest_target"], targets))
    return plots


def layer_numbers(sites: Sequence[str]) -> list[int]:
    """Layers by the sites' names, 3 for mlp_in.3; 0, 1, ... where the names don't tell them apart."""
    matches = [re.search(r"\.(\d+)(?![^:]*\d)", site) for site in sites]
    numbers = [int(match[1]) for match in matches if match is not None]
    return numbers if len(set(numbers)) == len(sites) else list(range(len(sites)))


def _by_layer(
    record: Mapping[str, Any], name: str, title: str, unit: str, key: str, sites: str
) -> Plot | None:
    lines: dict[str, tuple[list[int], list[float]]] = {}
    for label, entry in dictionaries(record).items():
        names = entry["dictionary"][sites]
        values = [entry["figures"].get(f"{key}/{site}") for site in names]
        if len(names) > 1 and None not in values:
            lines[label] = (layer_numbers(names), values)
    if not lines or (key == "l0" and flat([value for _, y in lines.values() for value in y])):
        return None

    def draw(axes: Axes, palette: Palette) -> None:
        for (label, (x, y)), colour in zip(lines.items(), palette.lines, strict=False):
            axes.plot(x, y, color=colour, label=label, marker="o", markersize=4, linewidth=1.2)
        layers = sorted({layer for x, _ in lines.values() for layer in x})
        axes.set_xlim(layers[0] - 0.3, layers[-1] + 0.3)
        axes.set_ylim(bottom=0, top=1.15 * max(max(y) for _, y in lines.values()) or 1.0)
        _layer_axis(axes.xaxis, layers)
        axes.set_xlabel("layer")
        unit_above(axes, unit, palette)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TIDY))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: short(v)))
        if len(lines) > 1:
            axes.legend(loc="best")

    ends = "; ".join(
        f"{label}: {y[0]:.3g} in layer {x[0]} to {y[-1]:.3g} in layer {x[-1]}"
        for label, (x, y) in lines.items()
    )
    return Plot(name, title, f"{title}, {unit}: {ends}", draw, WIDE)


def _heat_map(norms: Sequence[Sequence[float]], dictionary: Mapping[str, Any]) -> Plot:
    sources, targets = (layer_numbers(dictionary[key]) for key in ("sources", "targets"))
    most = max(max(row) for row in norms) or 1.0
    decimals = max(0, 2 - math.floor(math.log10(most)))

    def draw(axes: Axes, palette: Palette) -> None:
        for s, row in enumerate(norms):
            for t, value in enumerate(row):
                if value > 0:
                    _cell(axes, palette, s, t, value / most)
                    if max(len(sources), len(targets)) <= WRITTEN_OUT:
                        _write(axes, palette, s, t, f"{value:.{decimals}f}", value / most)
        axes.set_xlim(-0.5, len(sources) - 0.5)
        axes.set_ylim(-0.5, len(targets) - 0.5)
        axes.grid(visible=False)
        for axis, layers in ((axes.xaxis, sources), (axes.yaxis, targets)):
            ticks = _few(list(range(len(layers))))
            axis.set_ticks(ticks, [str(layers[i]) for i in ticks])
        axes.set_xlabel("source layer")
        unit_above(axes, "target layer, norms in its standard deviations", palette)

    own = sum(row[s] for s, row in enumerate(norms) if s < len(row))
    share = own / (sum(map(sum, norms)) or 1.0)
    label = (
        f"Heat map of decoder norms from source to target layer, at most {most:.3g} of the "
        f"target's standard deviation; {share:.0%} of their sum goes to the source's own layer"
    )
    return Plot("decoder_norms", "Decoder norm from source to target", label, draw, WIDE)


def _strongest(counts: Sequence[float], targets: Sequence[str]) -> Plot:
    """Bars of the number of features that write most to each target."""
    layers = layer_numbers(targets)

    def draw(axes: Axes, palette: Palette) -> None:
        axes.bar(range(len(counts)), counts, width=0.8, color=palette.first)
        axes.set_xlim(-0.6, len(counts) - 0.4)
        ticks = _few(list(range(len(counts))))
        axes.xaxis.set_ticks(ticks, [str(layers[i]) for i in ticks])
        axes.set_xlabel("layer that a feature writes most to")
        unit_above(axes, "features", palette)
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=TIDY, integer=True))

    most = max(range(len(counts)), key=lambda t: counts[t])
    label = f"Features by the target that they write most to: {counts[most]:.0f} to {targets[most]}"
    return Plot("strongest_target", "Features by their main target", label, draw, WIDE)


def _cell(axes: Axes, palette: Palette, s: int, t: int, share: float) -> None:
    """Draws a share as opacity, so that the page's own colours show through in light and dark."""
    corner = (s - 0.48, t - 0.46)
    axes.add_patch(Rectangle(corner, 0.96, 0.92, facecolor=palette.first, alpha=share, linewidth=0))


def _write(axes: Axes, palette: Palette, s: int, t: int, text: str, share: float) -> None:
    colour = palette.paper if share > 0.62 else palette.ink
    axes.text(s, t, text, ha="center", va="center", fontsize=8, color=colour)


def _layer_axis(axis: Any, layers: Sequence[int]) -> None:
    axis.set_ticks(_few(layers))


def _few(layers: Sequence[int]) -> Sequence[int]:
    """At most FEW_TICKS evenly spaced layers."""
    return layers[:: -(-len(layers) // FEW_TICKS)]
