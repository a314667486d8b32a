"""Writes report.html, with all pictures of a run in one file that needs no network."""

from __future__ import annotations

from pathlib import Path


def write_report(folder: Path) -> Path:
    """Writes a run's report.html and figures/*.png anew; see `page.write_report`."""
    from dictlearn.evals.report import page  # late: the page over several runs needs no torch

    return page.write_report(folder)
