"""Sections and tables of HTML, as all parts of the report have them."""

from __future__ import annotations

from collections.abc import Iterable

from dictlearn.escape import html as escape
from dictlearn.evals.table import Column


def section(title: str, note: str, *parts: str) -> str:
    """A section with its heading, a note below that, and those of the parts that are not empty."""
    body = "\n".join(filter(None, parts))
    return f'<section>\n<h2>{title}</h2>\n<p class="note">{note}</p>\n{body}\n</section>'


def html_table(
    heads: list[str], columns: Iterable[Column], rows: Iterable[tuple[list[str], list[str], bool]]
) -> str:
    """Rows are (labels under the heads, cells, whether the row is the dictionary's own)."""
    named = "".join(f'<th scope="col"><span hidden>{escape(head)}</span></th>' for head in heads)
    titles = "".join(
        f'<th scope="col" title="{escape(column.meaning)}">'
        + "<br>".join(filter(None, [*map(escape, column.title.split("\n")), column.unit]))
        + "</th>"
        for column in columns
    )
    body = "\n".join(
        f"<tr{' class=own' if own else ''}>"
        + "".join(f'<th scope="row">{escape(label)}</th>' for label in labels)
        + "".join(f"<td>{value}</td>" for value in cells)
        + "</tr>"
        for labels, cells, own in rows
    )
    return f"""<div class="scroll"><table>
<thead><tr>{named}{titles}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>"""
