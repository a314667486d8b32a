"""Reads and writes features/explanations.jsonl, descriptions of features with their scores.

Each line is a JSON object; a later line of the same (source, feature) replaces an earlier one, so
that an interrupted run loses nothing:

    {"source": 0, "feature": 17, "text": "the token `self` after `(`", "explainer": "lexical",
     "model": null, "prompt_hash": "...", "scores": {"balanced_accuracy": 0.91, ...},
     "baselines": {"shuffled": 0.5, "random_dictionary": 0.62}, "n_examples": 60,
     "reliable": true, "failing": [{"text": "...", "fired": true, "predicted": false}],
     "dictionary": "..."}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

from dictlearn.disk.errors import CONTENT_ERRORS, content_error
from dictlearn.disk.folders import ensure_folder
from dictlearn.disk.whole import SaveError
from dictlearn.store.text import without_surrogates

FILE = "explanations.jsonl"


@dataclass(frozen=True)
class Failure:
    """A context in which description and feature disagree."""

    text: str  # the token in question between << and >>, where the scorer asked for one
    fired: bool
    predicted: bool


@dataclass(frozen=True)
class Explanation:
    """A description of one feature and its scores, on documents that the explainer never saw.

    An explanation that isn't `reliable` must be shown as such. An empty `text` means that no
    description was found.
    """

    source: int  # row of the code
    feature: int
    text: str
    explainer: str  # the option of conf/explainer that made it
    model: str | None = None  # the language model that wrote it
    prompt_hash: str = ""  # of the prompt; of the settings, for a search
    scores: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    n_examples: int = 0  # firings that a rule was scored on, or a model's answers to scorers
    reliable: bool = False
    failing: tuple[Failure, ...] = ()
    dictionary: str = ""  # `sha256_of` the feature's dictionary; empty: unknown


def read_explanations(
    folder: Path, dictionary_sha256: str | None = None
) -> dict[tuple[int, int], Explanation]:
    """(source, feature) -> explanation, from a features/ folder; empty where there is no file.

    With `dictionary_sha256`, lines of other dictionaries are left out, such as the run's before it
    was trained further. A last line that a killed process left half written is skipped.

    Raises:
        ValueError: another line is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    explanations = {}
    for explanation in _lines(path):
        if dictionary_sha256 and explanation.dictionary not in ("", dictionary_sha256):
            continue
        explanations[explanation.source, explanation.feature] = explanation
    return explanations


@final
class ExplanationWriter:
    """Appends explanations to the file of a features/ folder and syncs it to the disk.

    A line is never replaced by a worse one: neither a description by none, nor a description with
    scores by one without.

    Args:
        dictionary_sha256: hash of the features' dictionary, written into each line; lines of other
            dictionaries may be replaced.

    Attributes:
        path: the file.
        described: features for which a description was written.
        left: features whose earlier line stays, because the new one is worse.

    Raises:
        ValueError: a line of the file is damaged.
    """

    def __init__(self, folder: Path, dictionary_sha256: str = ""):
        self.path = folder / FILE
        self._dictionary = dictionary_sha256
        self.left: set[tuple[int, int]] = set()
        self._described: set[tuple[int, int]] = set()
        self._known = read_explanations(folder, dictionary_sha256)
        self._opened = False

    def add(self, explanations: Iterable[Explanation]) -> None:
        """Adds all of them or, where one is refused, none.

        Raises:
            SaveError: the disk doesn't take them.
            ValueError: a score is not finite: an undefined score is left out of `scores`.
        """
        better = []
        for explanation in explanations:
            feature = explanation.source, explanation.feature
            if _worth(explanation) < _worth(self._known.get(feature)):
                self.left.add(feature)
                continue
            self.left.discard(feature)
            sha256 = self._dictionary or explanation.dictionary
            better.append(replace(explanation, dictionary=sha256))
        text = "".join(map(_written, better))
        if text or not self.path.exists():
            self._append(text.encode())
        self._known |= {(e.source, e.feature): e for e in better}
        self._described |= {(e.source, e.feature) for e in better if e.text}

    @property
    def described(self) -> int:
        return len(self._described)

    def _append(self, lines: bytes) -> None:
        try:
            with ensure_folder(self.path.parent), self.path.open("ab") as file:
                if not self._opened:
                    file.truncate(_whole_lines(self.path))
                    self._opened = True
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise SaveError(self.path, error) from error


def add_explanations(folder: Path, explanations: Iterable[Explanation]) -> Path:
    """Appends explanations as `ExplanationWriter` does; returns the file's path."""
    writer = ExplanationWriter(folder)
    writer.add(explanations)
    return writer.path


def _worth(explanation: Explanation | None) -> int:
    """0 for no description, 1 for a description, 2 for one with scores."""
    if explanation is None or not explanation.text:
        return 0
    return 2 if explanation.scores else 1


def _lines(path: Path) -> Iterator[Explanation]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield _read(json.loads(line))
        except CONTENT_ERRORS as error:
            if number == len(lines):  # no newline ends it: the process was killed while it wrote
                return
            raise ValueError(
                f"{path} line {number}: not an explanation ({content_error(error)})"
            ) from error


def _read(entry: Any) -> Explanation:
    if not isinstance(entry, dict):
        raise TypeError(f"want a JSON object, not {type(entry).__name__}")
    failing = tuple(Failure(**fields) for fields in entry.get("failing", []))
    read = Explanation(**{**entry, "failing": failing})
    texts = (read.text, read.explainer, read.prompt_hash, read.dictionary)
    numbers = (*read.scores.values(), *read.baselines.values())
    right = (
        all(type(n) is int and n >= 0 for n in (read.source, read.feature, read.n_examples))
        and all(isinstance(text, str) for text in texts)
        and isinstance(read.model, str | None)
        and isinstance(read.reliable, bool)
        and all(type(n) in (int, float) and math.isfinite(n) for n in numbers)
        and all(isinstance(failure.text, str) for failure in failing)
    )
    if not right:
        raise TypeError("a value of another type than ours")
    return read


def _written(explanation: Explanation) -> str:
    where = f"source {explanation.source}, feature {explanation.feature}"
    for name, value in (*explanation.scores.items(), *explanation.baselines.items()):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {name}={value}; leave out what is undefined")
    line = json.dumps(asdict(explanation), ensure_ascii=False, allow_nan=False)
    return without_surrogates(line) + "\n"


def _whole_lines(path: Path) -> int:
    """Number of bytes up to the end of the file's last whole line."""
    return path.read_bytes().rfind(b"\n") + 1
