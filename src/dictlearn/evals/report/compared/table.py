"""The table over several runs: its columns, for the page, and its form for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.text import Text

from dictlearn.evals.report.compared.read import Run, differing, on_other_texts
from dictlearn.evals.table import COLUMNS as FIGURES
from dictlearn.evals.table import DEAD, L0, Column, cell, figure_table

COLUMNS = (
    L0,
    *(column for column in FIGURES if column.key in ("fvu", "ce_increase", "kl")),
    DEAD,
)
TOKENS = Column("tokens", "tokens", "", ",.0f", "tokens that the figures rest on")
TEXTS_DIFFER = "Not all were evaluated on the same text: small differences say nothing."
NAMED_RUNS = 3  # whose values are told apart in the lines that say what differs
SHOWN_VALUES = 8  # of a setting, in the line that says what differs


def columns(runs: Sequence[Run]) -> list[Column]:
    """The columns for which at least one run has a figure; the tokens where their numbers differ."""
    shown = [c for c in COLUMNS if any(run.figure(c.key) is not None for run in runs)]
    return [*shown, TOKENS] if len({run.figure(TOKENS.key) for run in runs}) > 1 else shown


def cells(run: Run, shown: Sequence[Column]) -> list[str]:
    return [cell(column, {column.key: run.figure(column.key)}) for column in shown]


def best(runs: Sequence[Run], column: Column) -> float | None:
    """The column's least figure; None for L0, dead features and tokens, which have no best."""
    if column.key in ("l0", "dead", "tokens"):
        return None
    values = [value for run in runs if (value := run.figure(column.key)) is not None]
    return min(values, default=None)


def renderable(runs: Sequence[Run]) -> Group:
    """A table for a rich console: a row per run, the best figures bold, and differing settings below."""
    shown = columns(runs)
    table = figure_table(shown, "run", overflow="fold")
    least = {column.key: best(runs, column) for column in shown}
    for run in runs:
        values = [
            Text(text, style="bold" if run.figure(column.key) == least[column.key] else "")
            for text, column in zip(cells(run, shown), shown, strict=True)
        ]
        table.add_row(Text(run.name), *values)
    lines = [Text(f"{key}: {_values(runs, key)}", style="dim") for key in differing(runs)]
    below = [Text("What differs", style="dim"), *lines, Text()] if lines else []
    note = [Text(TEXTS_DIFFER), Text()] if on_other_texts(runs) else []
    return Group(Text(), table, Text(), *note, *below)


def _values(runs: Sequence[Run], key: str) -> str:
    """The values of a setting in the order of the runs, with the runs' names if these are few."""
    if len(runs) <= NAMED_RUNS:
        return ", ".join(f"{run.settings[key]} ({run.name})" for run in runs)
    values = list(dict.fromkeys(run.settings[key] for run in runs))
    more = f", and {len(values) - SHOWN_VALUES} more" if len(values) > SHOWN_VALUES else ""
    return ", ".join(values[:SHOWN_VALUES]) + more
