"""Parses a language model's answers: drops thoughts and Markdown."""

from __future__ import annotations

import json
import re

MARK = "DESCRIPTION:"
LONGEST = 2000  # characters of a description; longer ones are cut

_TAGS = "think|thinking|thought|thoughts|reasoning"  # in code quotes they are text and stay
_OPENED = re.compile(rf"(?<!`)(?:<(?:{_TAGS})>|\[THINK\]|◁think▷)(?!`)", re.IGNORECASE)
_CLOSED = re.compile(rf"(?<!`)(?:</(?:{_TAGS})>|\[/THINK\]|◁/think▷)(?!`)", re.IGNORECASE)
_CHANNEL = "<|channel|>"  # gpt-oss begins its answer with "<|channel|>final<|message|>"
_FINAL = re.compile(r"<\|channel\|>final[^<]{0,100}<\|message\|>")

_MARKED = re.compile(  # as a line of plain text, a heading, an item, or emphasised
    r"^[ \t>#-]*(?P<sign>[*_`]*)DESCRIPTION(?P<end>[*_`]*)[ \t]*[:\uff1a]",
    re.IGNORECASE | re.MULTILINE,
)
_FENCE = re.compile(r"[ \t]*(```|~~~)\w*[ \t]*$")
_BULLET = re.compile(r"(?:[-*+>]|#+)[ \t]+")
_LIST = re.compile(r"\[[^\[\]]*\]")


def spoken(text: str) -> str:
    """The answer without a reasoning model's thoughts.

    Thoughts end at the last closing tag, with or without an opening tag: some chat templates write
    that into the prompt. Without a closing tag, the answer was cut during its thoughts.
    """
    if _CHANNEL in text:
        parts = _FINAL.split(text)
        text = parts[-1].partition("<|")[0] if len(parts) > 1 else ""
    if closed := list(_CLOSED.finditer(text)):
        text = text[closed[-1].end() :]
    if opened := _OPENED.search(text):
        text = text[: opened.start()]
    return text.strip()


def description(answer: str, whole: bool = True) -> str:
    """The line after the last "DESCRIPTION:" of an answer; without one, the answer's last line.

    Args:
        whole: False for an answer that was cut; its last line may be a thought and is not taken.
    """
    if marked := list(_MARKED.finditer(answer)):
        rest = answer[marked[-1].end() :].lstrip()
        sign = "" if marked[-1]["end"] else marked[-1]["sign"]  # emphasis that is still open
        if rest.startswith(sign):
            lines = _lines(rest.removeprefix(sign))
        else:
            first, _, rest = rest.partition("\n")
            lines = _lines(f"{first.rstrip().removesuffix(sign)}\n{rest}")
        line = next(iter(lines), "")
    elif not whole:
        line = ""
    elif MARK in answer:  # in the middle of a line
        line = next(iter(_lines(answer.rpartition(MARK)[2])), "")
    else:
        line = next(reversed(_lines(answer)), "")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"


def numbers(text: str, n: int, low: float, high: float, whole: bool = True) -> list[float] | None:
    """The last JSON list of exactly `n` numbers from `low` to `high` in an answer, else None.

    Args:
        whole: False for an answer that was cut; then only a list at its beginning counts, since any
            other may be a thought.
    """
    lists = _LIST.findall(text)
    if not whole:
        first = _LIST.match(text.lstrip())
        lists = [first.group()] if first else []
    for candidate in reversed(lists):
        try:
            values = json.loads(candidate)
        except ValueError:
            continue
        plain = all(type(v) in (int, float) and low <= v <= high for v in values)
        if len(values) == n and plain:
            return [float(v) for v in values]
    return None


def _lines(text: str) -> list[str]:
    """The lines that are not empty, as plain text."""
    lines = [_plain(line) for line in text.splitlines() if not _FENCE.match(line)]
    return [line for line in lines if line]


def _plain(line: str) -> str:
    """A line without its bullet, and without emphasis or quotes around it; code quotes stay."""
    line = line.strip()
    if bullet := _BULLET.match(line):
        line = line[bullet.end() :].strip()
    for left, right in (("**", "**"), ("*", "*"), ('"', '"'), ("“", "”")):
        inside = line[len(left) : -len(right)]
        if line == f"{left}{inside}{right}" and inside and left not in inside:
            line = inside.strip()
    return line
