"""The report's section on features, from what `dictlearn pages` left beside the site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictlearn import marks
from dictlearn.escape import html as escape
from dictlearn.evals.report.left import section_of
from dictlearn.evals.table import share

FOLDER, FILE, PAGE = "features", "summary.json", "index.html"
COUNTS = {
    "described": ("Described", "with a description to go by"),
    "unreliable": ("Unreliable", "described, but not to be trusted"),
    "undescribed": ("No description", "fire, and nothing is said of them"),
    "dead": ("Dead", "never fired"),
}


def features(folder: Path) -> str:
    """HTML, or nothing where the run has no site of features. ValueError for a damaged file."""
    if not (folder / FOLDER / PAGE).is_file():
        return ""
    return section_of(folder, f"{FOLDER}/{FILE}", section, "Features", "features", "pages")


def section(summary: Mapping[str, Any]) -> str:
    total = summary["features"]
    counts = "\n".join(
        f"<div><dt>{title}</dt><dd>{summary['counts'][key]:,}</dd>"
        f'<dd class="beside">{summary["counts"][key] / max(total, 1):.1%} {said}</dd></div>'
        for key, (title, said) in COUNTS.items()
    )
    examples = "\n".join(map(_example, summary["examples"]))
    return f"""<section>
<h2>Features</h2>
<p class="note">On {summary["tokens"]:,} tokens of {summary["documents"]:,} held-out documents.
<a href="{FOLDER}/{PAGE}">All {total:,} features</a>, with search, examples and what each one does.</p>
<dl class="key">
{counts}
</dl>
<div class="features">
{examples}
</div>
</section>"""


def _example(one: Mapping[str, Any]) -> str:
    """A feature's name, what is said of it, and where it fires most, that token marked."""
    link = f'<a href="{FOLDER}/{PAGE}{escape(one["address"])}">{escape(one["name"])}</a>'
    said = marks.html(one["description"])
    if said and not one["reliable"]:
        said = f"unreliable: {said}"
    score = f", score {one['score']:.2f}" if said and one["score"] is not None else ""
    lines = "\n".join(
        f'<p><span class="before">{escape(_flat(before))}</span>'
        f"<mark>{escape(_flat(token) or ' ')}</mark>"
        f"<span>{escape(_flat(after))}</span></p>"
        for before, token, after, _ in one["contexts"]
    )
    return f"""<article>
<h3>{link}<small>fires on {escape(share(one["density"]))} of tokens{score}</small></h3>
{f"<p class=said>{said}</p>" if said else ""}
<div class="contexts">
{lines}
</div>
</article>"""


def _flat(text: str) -> str:
    """On one line: breaks as signs, indentation dropped."""
    lines = text.replace("\r", "").replace("\t", " ").split("\n")
    inner = [line.strip(" ") if i else line.rstrip(" ") for i, line in enumerate(lines)]
    return "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}".join(inner) if len(lines) > 1 else text
