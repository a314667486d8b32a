"""The report's section on features, from the summary that `dictlearn pages` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictlearn import marks
from dictlearn.escape import html as escape
from dictlearn.evals.report.left import section_of
from dictlearn.evals.report.parts import section
from dictlearn.evals.table import share
from dictlearn.words import counted

FOLDER, FILE, PAGE = "features", "summary.json", "index.html"
COUNTS = {
    "described": ("Described", "with a description to go by"),
    "unreliable": ("Unreliable", "described, but not to be trusted"),
    "undescribed": ("No description", "fire, and nothing is said of them"),
    "dead": ("Dead", "never fired"),
}


def features(folder: Path) -> str:
    """The section as HTML; "" where the run has no feature pages. ValueError for a damaged file."""
    if not (folder / FOLDER / PAGE).is_file():
        return ""
    return section_of(folder, f"{FOLDER}/{FILE}", _section, "Features", "features", "pages")


def _section(summary: Mapping[str, Any]) -> str:
    total = summary["features"]
    counts = "\n".join(
        f"<div><dt>{title}</dt><dd>{summary['counts'][key]:,}</dd>"
        f'<dd class="beside">{summary["counts"][key] / max(total, 1):.1%} {meaning}</dd></div>'
        for key, (title, meaning) in COUNTS.items()
    )
    examples = "\n".join(map(_example, summary["examples"]))
    note = (
        f"On {summary['tokens']:,} tokens of {counted(summary['documents'], 'held-out document')}. "
        f'<a href="{FOLDER}/{PAGE}">All {total:,} features</a>, with search, examples and what each one '
        "does."
    )
    counts = f'<dl class="key">\n{counts}\n</dl>'
    return section("Features", note, counts, f'<div class="features">\n{examples}\n</div>')


def _example(feature: Mapping[str, Any]) -> str:
    """A feature's name, description, and strongest contexts with the token marked."""
    link = f'<a href="{FOLDER}/{PAGE}{escape(feature["address"])}">{escape(feature["name"])}</a>'
    description = marks.html(feature["description"])
    if description and not feature["reliable"]:
        description = f"unreliable: {description}"
    scored = description and feature["score"] is not None
    score = f", score {feature['score']:.2f}" if scored else ""
    lines = "\n".join(
        f'<p><span class="before">{escape(_flat(before))}</span>'
        f"<mark>{escape(_flat(token) or ' ')}</mark>"
        f"<span>{escape(_flat(after))}</span></p>"
        for before, token, after, _ in feature["contexts"]
    )
    return f"""<article>
<h3>{link}<small>fires on {escape(share(feature["density"]))} of tokens{score}</small></h3>
{f"<p class=said>{description}</p>" if description else ""}
<div class="contexts">
{lines}
</div>
</article>"""


def _flat(text: str) -> str:
    """The text on one line, with signs for line breaks and without indentation."""
    lines = text.replace("\r", "").replace("\t", " ").split("\n")
    inner = [line.strip(" ") if i else line.rstrip(" ") for i, line in enumerate(lines)]
    return "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}".join(inner) if len(lines) > 1 else text
