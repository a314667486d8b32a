"""Features as a notebook shows them. All text is escaped: it comes from data and from models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dictlearn import marks
from dictlearn.escape import html as escape
from dictlearn.evals.table import share

if TYPE_CHECKING:
    from dictlearn.api.record import FeatureRecord

EXAMPLES = 8  # shown for each feature
WORDS = 10  # promoted tokens that are shown
INVISIBLE = {"\n": "⏎", "\r": "", "\t": "→"}


def feature(record: FeatureRecord) -> str:
    """Description, figures, examples shaded by activation, and promoted and suppressed tokens."""
    parts = [
        f"<b>{escape(record.name)}</b>: {record.said(marks.html)}",
        f"<small>{escape(record.fires())}</small>",
        *(
            f"<code>{example(shown.pieces, shown.activations)}</code>"
            for shown in record.examples[:EXAMPLES]
        ),
    ]
    for verb, targets in (("promotes", record.promoted), ("suppresses", record.suppressed)):
        for site, words in targets.items():
            listed = " ".join(f"<code>{_visible(word)}</code>" for word, _ in words[:WORDS])
            parts.append(f"<small>{verb} at {escape(site)}: {listed}</small>")
    return "<div>" + "<br>".join(parts) + "</div>"


def example(pieces: Sequence[str], activations: Sequence[float]) -> str:
    """Pieces of text, each shaded by the feature's activation."""
    largest = max(activations, default=0.0)
    return "".join(
        _piece(piece, activation / largest if largest > 0 else 0.0, activation)
        for piece, activation in zip(pieces, activations, strict=True)
    )


def table(caption: str, records: Iterable[FeatureRecord]) -> str:
    """One row per feature: name, description, density, strongest example."""
    rows = "".join(
        f"<tr><td>{escape(r.name)}</td><td>{r.said(marks.html)}</td><td>{escape(share(r.density))}</td>"
        f"<td><code>{example(r.examples[0].pieces, r.examples[0].activations)}</code></td></tr>"
        if r.examples
        else f"<tr><td>{escape(r.name)}</td><td>{r.said(marks.html)}</td>"
        f"<td>{share(0)}</td><td></td></tr>"
        for r in records
    )
    head = "".join(f"<th>{name}</th>" for name in ("feature", "description", "density", "text"))
    return f"<p>{escape(caption)}</p><table><tr>{head}</tr>{rows}</table>"


def _piece(piece: str, share: float, activation: float) -> str:
    if share <= 0:
        return _visible(piece)
    style = f"background:rgba(255,140,0,{0.15 + 0.7 * min(share, 1):.2f})"
    return f'<span style="{style}" title="{activation:.3g}">{_visible(piece)}</span>'


def _visible(text: str) -> str:
    for character, shown in INVISIBLE.items():
        text = text.replace(character, shown)
    return escape(text)
