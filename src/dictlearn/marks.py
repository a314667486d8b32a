"""Descriptions of features, which may hold Markdown's code marks, as HTML and as plain text.

The rules quote tokens so (`self`), and so do language models. A run of backticks opens code, and the
next run of as many closes it; one that nothing closes is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dictlearn import escape


def html(text: str) -> str:
    """`text` between tags, with its code as code; everything else in it is escaped."""
    return "".join(
        f"<code>{escape.html(part)}</code>" if is_code else escape.html(part)
        for part, is_code in parts(text)
    )


def plain(text: str) -> str:
    """`text` for a place that has no code: between quotation marks."""
    return "".join(_quoted(part) if is_code else part for part, is_code in parts(text))


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """(a stretch of `text` without its marks, whether it is code), in time linear in its length."""
    pieces = re.split("(`+)", text)  # text, marks, text, ..., text
    closing: dict[int, int] = {}  # place of marks -> place of the next marks of the same length
    latest: dict[str, int] = {}
    for place in range(len(pieces) - 2, 0, -2):
        if pieces[place] in latest:
            closing[place] = latest[pieces[place]]
        latest[pieces[place]] = place
    start = place = 0
    while place < len(pieces):
        if place in closing:
            end = closing[place]
            if plain_text := "".join(pieces[start:place]):
                yield plain_text, False
            yield _inside(pieces[place], "".join(pieces[place + 1 : end])), True
            start = place = end + 1
        else:
            place += 1
    if rest := "".join(pieces[start:]):
        yield rest, False


def _inside(marks: str, code: str) -> str:
    """Longer marks stand apart from what they hold, which may begin with one: `` ` ``."""
    if len(marks) > 1 and len(code) > 2 and code[0] == code[-1] == " ":
        return code[1:-1]
    return code


def _quoted(code: str) -> str:
    return f"'{code}'" if '"' in code else f'"{code}"'
