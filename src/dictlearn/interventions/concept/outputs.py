"""What is asked of generated text beside the concept: does it parse, does it repeat itself."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Sequence

CUT = 4  # lines at the end that a limit on tokens may have broken off
STEP = 4  # spaces of an indentation
GRAM = 4  # tokens


def parses_python(text: str) -> bool:
    """Whether Python parses the text, which may begin with an indented line.

    Generation stops in the middle of a statement, so up to CUT lines may be missing at the end.
    """
    lines = text.split("\n")
    indent = len(lines[0]) - len(lines[0].lstrip())
    outer = [" " * step + "if True:" for step in range(0, indent, STEP)]
    for cut in range(min(CUT, len(lines) - 1) + 1):
        kept = [*outer, *lines[: len(lines) - cut]]
        if _parses(kept) or _parses([*kept, " " * (indent + STEP) + "pass"]):
            return True
    return False


def _parses(lines: Sequence[str]) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings that nobody runs
            ast.parse("\n".join(lines))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def repetition(tokens: Sequence[int]) -> float:
    """The share of runs of GRAM tokens that occurred before in the text; 0 for a short one."""
    grams = [tuple(tokens[i : i + GRAM]) for i in range(len(tokens) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
