"""Texts that a user gives as a list, as one string with marks between them, or as a file of lines."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dictlearn.disk.errors import content_error, error_text

BETWEEN = "|||"  # several texts in one string
LINES = r"\S+\.(txt|jsonl)"  # one word that ends so is a file
BYTES = 64 << 20  # the largest file that is read


def texts_of(key: str, value: Any) -> list[Any]:
    """The texts of `value`: a .txt file (a line each) or .jsonl file, a list, or one string.

    A line of a .jsonl file is a string, or an object with `text`. Blank lines are passed over. Items
    of a list are taken as they are: texts, or token ids.

    Raises:
        ValueError: the file is not there, too large or not what its name says; it names the `key`.
    """
    if isinstance(value, Path) or (isinstance(value, str) and _is_file(value)):
        return _lines(key, Path(value).expanduser())
    if isinstance(value, str):
        return value.split(BETWEEN)
    if isinstance(value, Sequence):
        return list(value)
    raise ValueError(f"{key}={value!r}: want a list of texts, or a .txt or .jsonl file")


def _is_file(value: str) -> bool:
    return bool(re.fullmatch(LINES, value)) or (
        value.endswith((".txt", ".jsonl")) and Path(value).expanduser().is_file()
    )


def _lines(key: str, path: Path) -> list[str]:
    try:
        if path.stat().st_size > BYTES:
            raise ValueError(f"{key}={path}: has more than {BYTES >> 20} MiB")
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise ValueError(f"{key}={path}: {error_text(error)}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{key}={path}: {content_error(error)}") from None
    numbered = [(i, line) for i, line in enumerate(lines, 1) if line.strip()]
    if path.suffix != ".jsonl":
        return [line.rstrip("\r") for _, line in numbered]
    return [_text(f"{key}={path}, line {i}", line) for i, line in numbered]


def _text(where: str, line: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    text = record.get("text") if isinstance(record, dict) else record
    if not isinstance(text, str):
        raise ValueError(f'{where}: want a JSON string, or an object with a "text"')
    return text
