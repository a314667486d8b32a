"""The report's section on descriptions, from the summary that `dictlearn explain` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictlearn.escape import html as escape
from dictlearn.evals.report.left import section_of

FILE = "features/explanations.json"
COLUMNS = {"n": "Features", "mean": "Mean", "p05": "5%", "p50": "Median", "p95": "95%"}


def descriptions(folder: Path) -> str:
    """The section as HTML; "" where no features were explained. ValueError for a damaged file."""
    return section_of(folder, FILE, section, "Descriptions", "explain", "explain")


def section(summary: Mapping[str, Any]) -> str:
    own = {"n": summary["explained"], **summary["scores"].get("balanced_accuracy", {})}
    rows = {"dictionary": own} | {
        name.replace("_", " "): figures for name, figures in summary["baselines"].items()
    }
    head = "".join(f'<th scope="col">{title}</th>' for title in COLUMNS.values())
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{_cell(key, figures)}</td>" for key in COLUMNS)
        + "</tr>"
        for name, figures in rows.items()
    )
    reached = ", ".join(
        f"{value:.1%} at {bar}" for bar, value in summary["described_at_balanced_accuracy"].items()
    )
    return f"""<section>
<h2>Descriptions</h2>
<p class="note">By {escape(summary["explainer"])}. Balanced accuracy on text that the explainer
never saw; shuffled descriptions and a random dictionary to compare with. Of {summary["live"]:,} live
features {escape(reached)}; {summary["reliable"]:,} reliable ({escape(summary["reliable_means"])});
{summary["left_out"]:,} left out, {escape(summary["left_out_because"])}.</p>
<div class="scroll"><table>
<thead><tr><th scope="col"><span hidden>Whose</span></th>{head}</tr></thead>
<tbody>
{body}
</tbody>
</table></div>
</section>"""


def _cell(key: str, figures: Mapping[str, float]) -> str:
    if key not in figures:
        return "\N{EN DASH}"
    return f"{figures[key]:,}" if key == "n" else f"{figures[key]:.2f}"
