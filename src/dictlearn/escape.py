"""Strings that somebody else wrote, made harmless where they are shown: once for each place.

Names, kinds, descriptions, errors about files: any of them may come from a stranger's file and hold
what a terminal, Markdown or HTML obeys. Whatever is inside the program stays as it was written.
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
# Categories of what has no look of its own: controls (ESC starts an order to the terminal), formats
# (some turn the direction of writing, and others are invisible), halves of characters, separators.
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp", "Co")
JOINERS = "\u200c\u200d\u00ad"  # of scripts, emoji and hyphenation: they belong to words
WIDE = 1 << 16  # columns of what is no terminal: nothing is cut or wrapped there
MARKDOWN = re.compile(r"([\\`*\[\]<>|&~$])|(?<!\w)(_)|(_)(?!\w)|^(\s*)([#+=-])|^(\s*\d+)([.)])")


def terminal(text: str) -> str:
    """`text` with `\\x1b` for an escape character, and likewise for all that is not to be seen."""
    text = decoded(text)
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if _is_seen(c) else c.encode("unicode_escape").decode() for c in text)


def line(text: str) -> str:
    """`terminal` in one line: the ends of lines are shown as well."""
    return terminal(text).replace("\n", "\\n").replace("\t", "\\t")


def markdown(text: str) -> str:
    """`text` within a line of Markdown, a heading or a table's cell: it looks as it is written."""
    line = " ".join(terminal(text).split())
    return MARKDOWN.sub(lambda m: "".join(_marked(part) for part in m.groups("")), line)


def html(text: str) -> str:
    """`text` between tags, or in a quoted attribute."""
    return _html.escape(terminal(text), quote=True)


def say(text: str) -> None:
    """A line on stderr."""
    sys.stderr.write(terminal(text) + "\n")


def console(stderr: bool = False, markup: bool = False) -> Console:
    """rich's, which shows text as it is: nothing in it is markup, or an order to the terminal.

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

    made = Harmless(stderr=stderr, markup=markup, emoji=False)
    if not (made.is_terminal or made.is_jupyter or os.environ.get("COLUMNS")):
        made.width = WIDE
    return made


def markup(text: str) -> str:
    """`text` where rich takes markup whatever the console says: in the columns of a progress bar."""
    from rich.markup import escape

    return escape(terminal(text))


def _is_seen(character: str) -> bool:
    if character in LINE_MARKS or character in JOINERS:
        return True
    return unicodedata.category(character) not in UNSEEN


def _marked(part: str) -> str:
    return f"\\{part}" if part and not part[0].isspace() and not part[0].isdigit() else part
