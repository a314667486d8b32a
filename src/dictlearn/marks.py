"""Converts Markdown's code marks in descriptions of features to HTML and to plain text.

The rules quote tokens in this way (`self`), and so do language models. A run of backticks opens code,
and the next run of the same length closes it; a run that nothing closes is text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from dictlearn import escape


def html(text: str) -> str:
    """`text` between tags, with its code in <code>; everything else is escaped."""
    return "".join(
        f"<code>{escape.html(part)}</code>" if is_code else escape.html(part)
        for part, is_code in parts(text)
    )


def plain(text: str) -> str:
    """`text` with its code between quotation marks."""
    return "".join(_quoted(part) if is_code else part for part, is_code in parts(text))


def parts(text: str) -> Iterator[tuple[str, bool]]:
    """(a stretch of `text` without its marks, whether it is code), in time linear in its length."""
    pieces = re.split("(`+)", text)  # text, marks, text, ..., text
    closing: dict[int, int] = {}  # index of marks -> index of the next marks of the same length
    latest: dict[str, int] = {}
    for index in range(len(pieces) - 2, 0, -2):
        if pieces[index] in latest:
            closing[index] = latest[pieces[index]]
        latest[pieces[index]] = index
    start = index = 0
    while index < len(pieces):
        if index in closing:
            end = closing[index]
            if plain_text := "".join(pieces[start:index]):
                yield plain_text, False
            yield _inside(pieces[index], "".join(pieces[index + 1 : end])), True
            start = index = end + 1
        else:
            index += 1
    if rest := "".join(pieces[start:]):
        yield rest, False


def _inside(marks: str, code: str) -> str:
    """Removes the spaces between longer marks and code, which may itself begin with a mark: `` ` ``."""
    if len(marks) > 1 and len(code) > 2 and code[0] == code[-1] == " ":
        return code[1:-1]
    return code


def _quoted(code: str) -> str:
    return f"'{code}'" if '"' in code else f'"{code}"'
