"""Writes the report at the end of a verb; a failure names the command that writes it later."""

from __future__ import annotations

from pathlib import Path

from dictlearn.commands import command
from dictlearn.evals.report import write_report


def write_report_of(folder: Path) -> None:
    """Writes the report of a run or an evaluation again, from the files in its folder.

    Raises:
        OSError: it can't be written; names the command that writes it later, from the same files.
        ValueError: so does that of a damaged file that it would show.
    """
    try:
        write_report(folder)
    except OSError as error:
        raise OSError(f"{error}; {command('report', run=folder)} writes it") from error
    except ValueError as error:
        later = f"with that mended, {command('report', run=folder)} writes the report"
        raise ValueError(f"{error}; {later}") from error
