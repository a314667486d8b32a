"""The report's section on descriptions, from the summary that `dictlearn explain` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dictlearn.escape import html as escape
from dictlearn.evals.report.left import section_of
from dictlearn.evals.report.parts import html_table, section
from dictlearn.evals.table import Column, cell

FILE = "features/explanations.json"
COLUMNS = (
    Column("n", "Features", "", ",.0f", "that were scored"),
    Column("mean", "Mean", "", ".2f", "balanced accuracy"),
    Column("p05", "5%", "", ".2f", "a twentieth of the scores is below it"),
    Column("p50", "Median", "", ".2f", "half of the scores are below it"),
    Column("p95", "95%", "", ".2f", "a twentieth of the scores is above it"),
)


def descriptions(folder: Path) -> str:
    """The section as HTML; "" where no features were explained. ValueError for a damaged file."""
    return section_of(folder, FILE, _section, "Descriptions", "explain", "explain")


def _section(summary: Mapping[str, Any]) -> str:
    own = {"n": summary["explained"], **summary["scores"].get("balanced_accuracy", {})}
    baselines = {name.replace("_", " "): row for name, row in summary["baselines"].items()}
    rows = [
        ([name], [cell(column, figures) for column in COLUMNS], False)
        for name, figures in ({"dictionary": own} | baselines).items()
    ]
    reached = ", ".join(
        f"{value:.1%} at {bar}" for bar, value in summary["described_at_balanced_accuracy"].items()
    )
    note = (
        f"By {escape(summary['explainer'])}. Balanced accuracy on text that the explainer never saw; "
        "shuffled descriptions and a random dictionary to compare with. Of "
        f"{summary['live']:,} live features {escape(reached)}; {summary['reliable']:,} reliable "
        f"({escape(summary['reliable_means'])}); {summary['left_out']:,} left out, "
        f"{escape(summary['left_out_because'])}."
    )
    return section("Descriptions", note, html_table(["Whose"], COLUMNS, rows))
