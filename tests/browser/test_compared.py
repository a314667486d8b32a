"""The page over several runs, opened from the disk: sorted, pointed at, followed to a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from dictlearn.evals.record import FORMAT, write_record
from dictlearn.evals.report.compared.page import write_page
from dictlearn.evals.report.compared.read import read_runs, run_folders
from tests.browser.devtools import Browser

NAMES = "[...document.querySelectorAll('tbody th')].map((th) => th.textContent)"
MARKED = "[...document.querySelectorAll('.marked')].map((one) => one.dataset.run)"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs; the second has no CE increase."""
    folder = tmp_path_factory.mktemp("multirun")
    for k, fvu, ce in ((8, 0.3, 1.5), (16, 0.2, None), (128, 0.25, -0.1)):
        figures = {"l0": float(k), "fvu": fvu, "ce_increase": ce}
        write_record(folder / f"dict.k={k}", {"format": FORMAT, "figures": figures})
        (folder / f"dict.k={k}" / "report.html").write_text(f"<title>report of {k}</title>")
    runs = read_runs(run_folders([folder]).runs)
    left_out = [f"dict.k=64 failed: cannot save {'x' * 200}: No space left on device"]
    return write_page(runs, folder / "sweep.html", "multirun", left_out)


def press(browser: Browser, column: str) -> list[str]:
    """Presses the head of a column; the runs in their new order, by k."""
    heads = "[...document.querySelectorAll('thead button')]"
    browser.value(f"{heads}.find((b) => b.textContent.startsWith('{column}')).click()")
    return [name.removeprefix("dict.k=") for name in browser.value(NAMES)]


def test_a_columns_head_sorts_both_ways(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.value(NAMES) == ["dict.k=8", "dict.k=16", "dict.k=128"]
    assert press(browser, "FVU") == ["16", "128", "8"]
    assert press(browser, "FVU") == ["8", "128", "16"]
    assert press(browser, "CE") == ["128", "8", "16"]  # what was not measured comes last
    assert press(browser, "CE") == ["8", "128", "16"]
    assert press(browser, "Run") == ["8", "16", "128"]  # as numbers, not as letters
    assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1


def test_a_row_shows_its_points_and_a_point_leads_to_its_report(
    browser: Browser, page: Path
) -> None:
    browser.open(page)
    browser.hover("tbody tr:nth-child(3) td")
    assert browser.value(MARKED) == ["2", "2", "2"]  # two charts and the row
    browser.hover("h1")
    assert browser.value(MARKED) == []
    titles = browser.value("[...document.querySelectorAll('svg title')].map((t) => t.textContent)")
    assert "dict.k=8\nL0 8.0, fvu 0.3" in titles
    browser.click("svg [data-run='0']")
    browser.until("document.title === 'report of 8'")


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_it_fits_any_width(browser: Browser, page: Path, width: int) -> None:
    browser.look(width, 800)
    browser.open(page)
    assert browser.value("document.documentElement.scrollWidth") <= width
