"""Whether what lies in a run's features/ is of the dictionary that the run has now."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dictlearn.ckpt.dictionary import saved_sha256


def is_stale(summary: Mapping[str, Any], run: Path) -> bool:
    """True where the summary names another dictionary; False where it, or the run, names none."""
    named = summary.get("dictionary") if isinstance(summary, Mapping) else None
    with suppress(ValueError):  # a dictionary that can't be read is not the report's to refuse
        return named is not None and saved_sha256(run) not in (None, named)
    return False


def stale_section(title: str, verb: str) -> str:
    """What stands in the place of a section on another dictionary."""
    return f"""<section>
<h2>{title}</h2>
<p class="note">Those in features/ are of another dictionary, such as this run's before it was made
longer; <code>dictlearn {verb}</code> makes them anew.</p>
</section>"""
