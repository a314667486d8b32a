"""What a pass over text left out or changed, counted by reason, so that it can be said."""

from __future__ import annotations

from collections import Counter
from typing import final

REPEATED = "repeated documents"
EMPTY = "documents without text"
ROWS = "rows without text in data.field"
FILES = "files that are not text"
HALVES = "documents that hold half a character (a lone surrogate)"  # changed, not left out


@final
class LeftOut(Counter[str]):
    """How often each reason held."""

    def sentences(self) -> list[str]:
        """One line on what was left out and one on what was changed, where there is anything."""
        gone = ", ".join(
            f"{self[why]:,} {why}" for why in (REPEATED, EMPTY, ROWS, FILES) if self[why]
        )
        said = [f"data: left out {gone}"] if gone else []
        if self[HALVES]:
            said.append(f"data: {self[HALVES]:,} {HALVES} have U+FFFD in its place")
        return said
