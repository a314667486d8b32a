"""One page over several runs: charts and a sortable table, with links to the runs' reports."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from urllib.parse import quote

from dictlearn import __version__
from dictlearn.disk.whole import write_text
from dictlearn.escape import html as escape
from dictlearn.evals.report.compared.plots import anchor, plots
from dictlearn.evals.report.compared.read import Run, differing, on_other_texts
from dictlearn.evals.report.compared.table import TEXTS_DIFFER, best, cells, columns
from dictlearn.evals.report.plots import Plot
from dictlearn.evals.report.theme import inline_svg

PAGE = "sweep.html"
OURS = '<meta name="generator" content="dictlearn compare">'  # as in page.html


def write_page(runs: Sequence[Run], path: Path, title: str, left_out: Sequence[str] = ()) -> Path:
    """Writes the page, whole or not at all; it needs no network. See `page`."""
    write_text(path, page(runs, path.parent, title, left_out))
    return path


def is_ours(path: Path) -> bool:
    """Whether a file is a page of `write_page`, which may be replaced."""
    return path.is_file() and OURS.encode() in path.read_bytes()[:1000]


def page(runs: Sequence[Run], folder: Path, title: str, left_out: Sequence[str] = ()) -> str:
    """The whole HTML document; links are relative to `folder`.

    `left_out` are sentences on runs that failed, or have no figures.
    """
    links = [_link(run, folder) for run in runs]
    drawn = "\n".join(_figure(plot, runs, links) for plot in plots(runs))
    sections = [
        f'<div class="plots few">\n{drawn}\n</div>' if drawn else "",
        f"<section>\n<h2>Runs</h2>\n{_note(runs)}\n{_table(runs, links)}\n</section>",
        _left_out(left_out),
    ]
    report = files("dictlearn.evals.report")
    here = report / "compared"
    return Template((here / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(title),
        style=(report / "style.css").read_text(encoding="utf-8").strip(),
        lede=_lede(runs),
        sections="\n".join(filter(None, sections)),
        footer=escape(
            f"dictlearn {__version__} \N{MIDDLE DOT} {datetime.now(UTC).isoformat(timespec='seconds')}"
        ),
        script=(here / "page.js").read_text(encoding="utf-8").strip(),
    )


def _link(run: Run, folder: Path) -> str:
    """The report's address relative to the page's folder; "" where there is no report."""
    if run.report is None:
        return ""
    relative = os.path.relpath(run.report.resolve(), folder.resolve())
    return quote(Path(relative).as_posix())


def _lede(runs: Sequence[Run]) -> str:
    """A sentence on the number of runs, what they share and in what they differ."""
    first = runs[0].settings
    same = [
        key for key in ("kind", "sites", "model")
        if all(key in run.settings and run.settings[key] == first.get(key) for run in runs)
    ]  # fmt: skip
    words = [f"{before} <b>{escape(first[key])}</b>" for key, before in (
        ("kind", "of"), ("sites", "on"), ("model", "of"),
    ) if key in same]  # fmt: skip
    head = " ".join([f"<b>{len(runs)} run{'s' if len(runs) > 1 else ''}</b>", *words])
    keys = differing(runs)
    return f"{head}. They differ in {', '.join(map(escape, keys))}." if keys else f"{head}."


def _note(runs: Sequence[Run]) -> str:
    text = (
        "A column's head sorts by it; a run's name, and its point, lead to its report. The least of "
        "a column is bold."
    )
    if on_other_texts(runs):
        text += f" {TEXTS_DIFFER}"
    return f'<p class="note">{text}</p>'


def _left_out(sentences: Sequence[str]) -> str:
    if not sentences:
        return ""
    items = "\n".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<section>\n<h2>Left out</h2>\n<ul class="left-out">\n{items}\n</ul>\n</section>'


def _figure(plot: Plot, runs: Sequence[Run], links: Sequence[str]) -> str:
    """The plot with its points linked to reports and titled with their figures."""
    svg = inline_svg(plot.draw, plot.name, escape(plot.label), plot.width)
    for i, (run, link) in enumerate(zip(runs, links, strict=True)):
        address = f' href="{escape(link)}"' if link else ""
        point = f"{escape(run.name)}\nL0 {run.figure('l0')}, {plot.name} {run.figure(plot.name)}"
        opening = f'<a data-run="{i}"{address}><title>{point}</title>'
        svg = re.sub(f'<a href="{anchor(i)}"[^>]*>', lambda _, opening=opening: opening, svg)
    return f"<figure><figcaption>{escape(plot.title)}</figcaption>\n{svg}</figure>"


def _table(runs: Sequence[Run], links: Sequence[str]) -> str:
    shown, keys = columns(runs), differing(runs)
    heads = [("Run", "the run's folder"), *((key, f"setting {key}") for key in keys)]
    heads += [
        ("<br>".join(filter(None, [column.title, column.unit])), column.meaning) for column in shown
    ]
    head = "".join(
        f'<th scope="col" title="{escape(meaning)}"><button type="button">'
        f"{name if i > len(keys) else escape(name)}</button></th>"
        for i, (name, meaning) in enumerate(heads)
    )
    least = {column.key: best(runs, column) for column in shown}
    rows = []
    for i, (run, link) in enumerate(zip(runs, links, strict=True)):
        name = escape(run.name)
        label = name.replace(",", ",<wbr>").replace("/", "/<wbr>")
        named = f'<a href="{escape(link)}">{label}</a>' if link else label
        row = [f'<th scope="row" data-value="{name}">{named}</th>']
        for key in keys:
            setting = escape(run.settings[key])
            value = setting.replace(",", "")
            row.append(f'<td class="setting" title="{setting}" data-value="{value}">{setting}</td>')
        for column, text in zip(shown, cells(run, shown), strict=True):
            value = run.figure(column.key)
            bold = ' class="best"' if value is not None and value == least[column.key] else ""
            row.append(f'<td data-value="{"" if value is None else value}"{bold}>{text}</td>')
        rows.append(f'<tr data-run="{i}">{"".join(row)}</tr>')
    body = "\n".join(rows)
    return f"""<div class="scroll"><table class="runs">
<thead><tr>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>"""
