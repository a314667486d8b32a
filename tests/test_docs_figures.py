"""Figures in README.md and docs/ are those that commands print and that are on record."""

from __future__ import annotations

import json
import re
from pathlib import Path

import docs_figures
import pytest
from figures import printed, quoted, tables

ROOT = Path(__file__).parents[1]

PAGES = docs_figures.pages()
NAMES = [page.name for page in PAGES]
MARKED = re.compile(r"<!-- (printed|table|not)\b[^>]* -->\n.*?<!-- /\1 -->", re.DOTALL)
OUTPUT = re.compile(r"^( {4}\$ .*|```text)$", re.MULTILINE)
MEASURED = re.compile(r"^\|.*\| \**[-+]?\d*\.\d+(%| s| ms)?\** \|", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_holds_what_is_printed_and_on_record(page: Path) -> None:
    """`make docs` writes it anew."""
    assert docs_figures.renewed(page) == page.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_shows_output_or_measurements_has_a_mark(page: Path) -> None:
    typed = MARKED.sub("", page.read_text(encoding="utf-8"))
    assert not OUTPUT.findall(typed) and not MEASURED.findall(typed)


def test_a_table_and_output_without_a_mark_are_noticed() -> None:
    assert OUTPUT.search("so:\n\n    $ dictlearn plan\n") and OUTPUT.search("```text\n")
    assert MEASURED.search("| topk | **0.135** |\n") and MEASURED.search("| topk | 3 | 0.07% |\n")
    assert not MEASURED.search("| Bloom 2024 | 4e-4 | 24,576 |\n")
    assert not MARKED.sub("", "<!-- table: molt -->\n| 0.5 |\n<!-- /table -->")


def test_figures_of_a_sentence_follow_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        quoted, "quotes", lambda: [("a.md", "{:.2f} of {:,}, {:.0%}", [0.5, 2000, 0.1])]
    )
    assert quoted.renewed("it was -1.25 of 1,999, 3%.", "a.md") == "it was 0.50 of 2,000, 10%."
    assert quoted.renewed("nothing", "b.md") == "nothing"
    for text in ("it was 1 in 2", "1 of 2, 3% and 1 of 2, 3%"):
        with pytest.raises(ValueError, match="want once"):
            quoted.renewed(text, "a.md")


def test_what_the_last_command_prints_is_recorded_and_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = "dictlearn --help; dictlearn --version"
    printed.record(commands, tmp_path)
    (record,) = json.loads((tmp_path / "printed.json").read_text())
    monkeypatch.setattr(printed, "newest", lambda name, commands: record)
    first, second = printed.recorded(commands).splitlines()
    assert first.startswith("    $ dictlearn --version    # ") and record["date"] in first
    assert second.startswith("    dictlearn ")


def test_the_end_of_what_is_printed() -> None:
    assert printed.shown("a", "one\ntwo: 2\n\n3", "two:") == "    $ a\n    two: 2\n\n    3"
    with pytest.raises(ValueError, match="no line that begins with 'four'"):
        printed.shown("a", "one", "four")
    with pytest.raises(ValueError, match="no such table"):
        tables.made("sea")
