"""Reads the summaries that other commands wrote into a run's features/, and checks that they are of
the run's present dictionary."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dictlearn.ckpt.dictionary import saved_sha256
from dictlearn.disk.errors import CONTENT_ERRORS, content_error
from dictlearn.evals.report.parts import section

Section = Callable[[Mapping[str, Any]], str]


def section_of(run: Path, file: str, shown: Section, title: str, verb: str, writer: str) -> str:
    """What `shown` makes of the summary in a run's `file`; "" where there is no such file.

    If the summary is of another dictionary, the section says so under `title`, and names `verb`,
    which makes it anew. Raises ValueError for a file of another form than `writer` writes.
    """
    path = run / file
    if not path.is_file():
        return ""
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return _stale(title, verb) if _is_stale(summary, run) else shown(summary)
    except CONTENT_ERRORS as error:
        raise ValueError(
            f"{path}: not what `dictlearn {writer}` writes ({content_error(error)})"
        ) from error


def _is_stale(summary: Mapping[str, Any], run: Path) -> bool:
    """True if the summary names another dictionary than the run's; False if either names none."""
    named = summary.get("dictionary") if isinstance(summary, Mapping) else None
    with suppress(ValueError):  # a dictionary that can't be read is not the report's to refuse
        return named is not None and saved_sha256(run) not in (None, named)
    return False


def _stale(title: str, verb: str) -> str:
    note = (
        "Those in features/ are of another dictionary, such as this run's before it was made longer; "
        f"<code>dictlearn {verb}</code> makes them anew."
    )
    return section(title, note)
