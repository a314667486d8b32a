"""Caches answers on disk, so that each is paid for once: a JSON line per answer, synced at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, final

from dictlearn.disk.folders import ensure_folder
from dictlearn.disk.whole import SaveError
from dictlearn.store.text import without_surrogates

FILE = "explain_cache.jsonl"
TYPES = {"text": str, "whole": bool, "tokens_in": int, "tokens_out": int}  # fields of an Answer


@final
class Cache:
    """Fields of answers by the hash of their prompts; with `folder` None they are only in memory."""

    def __init__(self, folder: Path | None):
        self._path = None if folder is None else folder / FILE
        self._known = {} if self._path is None else _read(self._path)

    def get(self, key: str) -> dict[str, Any] | None:
        return self._known.get(key)

    def add(self, key: str, answer: dict[str, Any]) -> None:
        """Stores an answer. Raises SaveError if it can't be written."""
        self._known[key] = answer
        if self._path is not None:
            _append(self._path, {"key": key, **answer})


def _read(path: Path) -> dict[str, dict[str, Any]]:
    """The answers in a file; other lines are skipped, such as one that a kill left half written."""
    if not path.is_file():
        return {}
    answers = {}
    for line in path.read_bytes().split(b"\n"):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict) or not isinstance(key := entry.pop("key", None), str):
            continue
        if {name: type(value) for name, value in entry.items()} == TYPES:
            answers[key] = {**entry, "text": without_surrogates(entry["text"])}
    return answers


def _append(path: Path, entry: dict[str, Any]) -> None:
    try:
        with ensure_folder(path.parent), path.open("ab+") as file:
            if file.tell() and not _ends_whole(path):
                file.write(b"\n")  # half a line of a killed process ends here
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise SaveError(path, error) from error


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
