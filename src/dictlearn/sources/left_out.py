"""Counts of what a pass over text left out or changed, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import final

REPEATED, EMPTY, ROWS, FILES = "repeated", "empty", "rows", "files"
BEYOND = "beyond"
MESSAGES, PARTS, REFUSED, MIXED, SILENT = "messages", "parts", "refused", "mixed", "silent"
HALVES = "halves"  # changed, not left out
ROLE = "role "  # before a role: conversations that have a turn of it, left out or not
MOST_ROLES = 16  # that are counted; a file may hold any

WORDS = {  # singular and plural
    REPEATED: ("repeated document", "repeated documents"),
    EMPTY: ("document without text", "documents without text"),
    ROWS: ("row without text in data.field", "rows without text in data.field"),
    FILES: ("file that is not text", "files that are not text"),
    MESSAGES: ("row without a conversation", "rows without a conversation"),
    PARTS: ("part of a message that is not text", "parts of messages that are not text"),
    REFUSED: ("conversation that the template refuses", "conversations that the template refuses"),
    MIXED: (
        "conversation whose turns the template mixes",
        "conversations whose turns the template mixes",
    ),
    SILENT: (
        "conversation without a turn of data.roles",
        "conversations without a turn of data.roles",
    ),
    BEYOND: (
        "token beyond the data.context of its document (data.long=cut)",
        "tokens beyond the data.context of their documents (data.long=cut)",
    ),
}


@final
class LeftOut(Counter[str]):
    """The number of documents, rows, files or tokens for each reason."""

    def count_roles(self, roles: Iterable[str]) -> None:
        """Counts a conversation with turns of these roles."""
        for key in {ROLE + role for role in roles}:
            if key in self or len(self.roles()) < MOST_ROLES:
                self[key] += 1

    def roles(self) -> list[str]:
        """The roles that the conversations have turns of, sorted; at most MOST_ROLES."""
        return sorted(key.removeprefix(ROLE) for key in self if key.startswith(ROLE))

    def sentences(self) -> list[str]:
        """A line that says what was left out and one for what was changed, if anything was."""
        counts = [
            f"{self[why]:,} {words[self[why] > 1]}" for why, words in WORDS.items() if self[why]
        ]
        lines = [f"data: left out {', '.join(counts)}"] if counts else []
        if n := self[HALVES]:
            where = f"in {n:,} document{'s' * (n > 1)}"
            lines.append(f"data: half a character (a lone surrogate) became U+FFFD {where}")
        return lines
