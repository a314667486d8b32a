"""Escapes strings from other people's files: one function for each place where they are shown.

Names, kinds, descriptions and errors about files may come from a stranger's file and contain codes
that a terminal, Markdown or HTML obeys. Inside the program strings stay as they were written.
"""

from __future__ import annotations

import html as _html
import os
import re
import sys
import unicodedata
from typing import TYPE_CHECKING, Any

from dictlearn.terminal import decoded

if TYPE_CHECKING:
    from rich.console import Console

LINE_MARKS = "\n\t"
# Categories of invisible characters: controls (ESC starts a terminal's command), formats (some change
# the direction of writing), surrogates, separators.
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp", "Co")
JOINERS = (
    "\u200c\u200d\u00ad"  # joiners in scripts and emoji, and soft hyphens: they belong to words
)
WIDE = 1 << 16  # columns off a terminal: nothing is cut or wrapped
MARKDOWN = re.compile(r"([\\`*\[\]<>|&~$])|(?<!\w)(_)|(_)(?!\w)|^(\s*)([#+=-])|^(\s*\d+)([.)])")


def terminal(text: str) -> str:
    """`text` with `\\x1b` for an escape character, and likewise for all invisible characters."""
    text = decoded(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_seen(c) else c.encode("unicode_escape").decode() for c in text)


def line(text: str) -> str:
    """`terminal` on one line: line breaks and tabs are escaped too."""
    return terminal(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """`text` within a line of Markdown, a heading or a table's cell: it is shown literally."""
    line = " ".join(terminal(text).split())
    return MARKDOWN.sub(lambda m: "".join(_marked(part) for part in m.groups("")), line)


def html(text: str) -> str:
    """`text` between tags, or in a quoted attribute."""
    return _html.escape(terminal(text), quote=True)


def say(text: str) -> None:
    """Writes a line to stderr."""
    sys.stderr.write(terminal(text) + "\n")


def console(stderr: bool = False, markup: bool = False) -> Console:
    """A rich Console that shows text literally: nothing in it is markup, or a terminal's command.

    Lines end where the terminal does. A pipe or a file has no end, unless COLUMNS gives it one.
    """
    from rich.console import Console
    from rich.segment import Segment

    class Harmless(Console):
        def render_str(self, text: str, **options: Any) -> Any:  # before it is measured
            return super().render_str(terminal(text), **options)

        def render(self, renderable: Any, options: Any = None) -> Any:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(terminal(segment.text), segment.style)

    console = Harmless(stderr=stderr, markup=markup, emoji=False)
    if not (console.is_terminal or console.is_jupyter or os.environ.get("COLUMNS")):
        console.width = WIDE
    return console


def markup(text: str) -> str:
    """`text` for columns of a progress bar, where rich always reads markup."""
    from rich.markup import escape

    return escape(terminal(text))


def _is_seen(character: str) -> bool:
    if character in LINE_MARKS or character in JOINERS:
        return True
    return unicodedata.category(character) not in UNSEEN


def _marked(part: str) -> str:
    return f"\\{part}" if part and not part[0].isspace() and not part[0].isdigit() else part
