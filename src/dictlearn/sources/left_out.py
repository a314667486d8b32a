"""What a pass over text left out or changed, counted by reason, so that it can be said."""

from __future__ import annotations

from collections import Counter
from typing import final

REPEATED, EMPTY, ROWS, FILES = "repeated", "empty", "rows", "files"
HALVES = "halves"  # changed, not left out

WORDS = {  # of one, and of several
    REPEATED: ("repeated document", "repeated documents"),
    EMPTY: ("document without text", "documents without text"),
    ROWS: ("row without text in data.field", "rows without text in data.field"),
    FILES: ("file that is not text", "files that are not text"),
}


@final
class LeftOut(Counter[str]):
    """How often each reason held."""

    def sentences(self) -> list[str]:
        """One line on what was left out and one on what was changed, where there is anything."""
        gone = [
            f"{self[why]:,} {words[self[why] > 1]}" for why, words in WORDS.items() if self[why]
        ]
        said = [f"data: left out {', '.join(gone)}"] if gone else []
        if n := self[HALVES]:
            where = f"in {n:,} document{'s' * (n > 1)}"
            said.append(f"data: half a character (a lone surrogate) became U+FFFD {where}")
        return said
