"""The style of plots; renders a drawing as a PNG, and as an SVG that follows the page's colours.

The SVG is drawn in placeholder colours that appear nowhere else; each is then replaced by the CSS
variable of its role, so that light and dark pages share one drawing.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dictlearn.escape import terminal

# Inches. Margins are fixed, so that plots side by side share their axes' lines.
HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 2.8, 0.58, 0.22, 0.3, 0.55
TITLE = 0.3  # above a PNG, which has no caption
PNG_DPI = 160


@dataclass(frozen=True)
class Palette:
    ink: str
    muted: str
    rule: str
    paper: str
    first: str
    second: str
    third: str
    fourth: str

    @property
    def lines(self) -> tuple[str, ...]:
        return (self.first, self.second, self.third, self.fourth)


LIGHT = Palette(
    ink="#1c1e21", muted="#6a7077", rule="#dfe2e5", paper="#ffffff",
    first="#1f5fa8", second="#c4581c", third="#2f7d4f", fourth="#7a4fa3",
)  # fmt: skip
PLACEHOLDERS = Palette(*(f"#0102{i:02x}" for i in range(1, len(fields(Palette)) + 1)))

Draw = Callable[[Axes, Palette], None]


def plain(text: str) -> str:
    """Escapes `text` for a plot, so that a dollar sign begins no formula."""
    return terminal(text).replace("$", r"\$")


def style(palette: Palette) -> dict[Any, Any]:
    return {
        "font.size": 10,
        "font.family": "DejaVu Sans",  # ships with matplotlib: the same on every machine
        "text.color": palette.ink,
        "axes.edgecolor": palette.rule,
        "axes.labelcolor": palette.muted,
        "axes.labelsize": 9.5,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.spines.left": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.formatter.useoffset": False,
        "axes.xmargin": 0.0,
        "grid.color": palette.rule,
        "grid.linewidth": 0.8,
        "xtick.color": palette.rule,
        "ytick.color": palette.rule,
        "xtick.labelcolor": palette.muted,
        "ytick.labelcolor": palette.muted,
        "xtick.major.size": 3.0,
        "ytick.major.size": 0.0,
        "xtick.minor.size": 0.0,
        "ytick.minor.size": 0.0,
        "figure.facecolor": palette.paper,
        "axes.facecolor": "none",
        "savefig.facecolor": palette.paper,
        "legend.frameon": False,
        "legend.fontsize": 9.5,
        "legend.handlelength": 1.2,
        "lines.linewidth": 1.5,
        "lines.solid_joinstyle": "round",
        "svg.fonttype": "none",
        "svg.hashsalt": "dictlearn",
    }


def drawn(draw: Draw, palette: Palette, width: float, above: float = 0.0) -> Figure:
    height = HEIGHT + above
    figure = Figure(figsize=(width, height))
    sides = (LEFT / width, BOTTOM / height, 1 - RIGHT / width, 1 - (TOP + above) / height)
    left, bottom, right, top = sides
    draw(figure.add_axes((left, bottom, right - left, top - bottom)), palette)
    return figure


def png(draw: Draw, title: str, width: float) -> bytes:
    """The drawing as a PNG, with its title above."""
    return _titled(draw, title, width, format="png", dpi=PNG_DPI, metadata={"Software": None})


def svg(draw: Draw, title: str, width: float) -> bytes:
    """The drawing as an SVG file, with its title above; for a page see `inline_svg`."""
    return _titled(draw, title, width, format="svg", metadata={"Date": None})


def _titled(draw: Draw, title: str, width: float, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with matplotlib.rc_context(style(LIGHT)):
        figure = drawn(draw, LIGHT, width, above=TITLE)
        y = 1 - 0.22 / (HEIGHT + TITLE)
        figure.text(0.1 / width, y, title, fontweight="bold", fontsize=10)
        figure.savefig(buffer, **options)
    return buffer.getvalue()


def inline_svg(draw: Draw, name: str, label: str, width: float) -> str:
    """The drawing as an <svg> element of an HTML page: prefixed ids, no namespaces, the page's font."""
    buffer = io.StringIO()
    with matplotlib.rc_context(style(PLACEHOLDERS)):
        figure = drawn(draw, PLACEHOLDERS, width)
        figure.patch.set_visible(False)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.S)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.S)
    svg = svg.replace("xlink:href", "href")
    box = f"0 0 {72 * width:g} {72 * HEIGHT:g}"
    opening = f'<svg class="plot" role="img" aria-label="{label}" viewBox="{box}">'
    svg = re.sub(r"<svg[^>]*>", lambda _: opening, svg, count=1)
    svg = _own_ids(svg, name)
    svg = re.sub(r"font: ([\d.]+)px[^;\"]*", r"font-size: \1px", svg)
    for field in fields(Palette):
        svg = svg.replace(getattr(PLACEHOLDERS, field.name), f"var(--{field.name})")
    return svg.strip()


def _own_ids(svg: str, name: str) -> str:
    """Prefixes the ids that are referred to with the plot's name; drops the rest."""
    used = set(re.findall(r"(?:url\(|href=\")#([^)\"]+)", svg))

    def rename(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r' id="([^"]*)"', rename, svg)
    return re.sub(r"(url\(|href=\")#([^)\"]+)", rf"\1#{name}-\2", svg)
