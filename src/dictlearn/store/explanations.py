"""features/explanations.jsonl: what is said of each feature, and how far it can be trusted.

One JSON object a line; a later line of the same (source, feature) takes the place of an earlier
one, so that an interrupted run loses nothing:

    {"source": 0, "feature": 17, "text": "the token `self` after `(`", "explainer": "lexical",
     "model": null, "prompt_hash": "...", "scores": {"balanced_accuracy": 0.91, ...},
     "baselines": {"shuffled": 0.5, "random_dictionary": 0.62}, "n_examples": 60,
     "reliable": true, "failing": [{"text": "...", "fired": true, "predicted": false}]}
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FILE = "explanations.jsonl"


@dataclass(frozen=True)
class Failure:
    """A context in which the description says one thing and the feature does another."""

    text: str  # the token in question between << and >>, where the scorer asked for one
    fired: bool
    predicted: bool


@dataclass(frozen=True)
class Explanation:
    """A description of one feature and its scores, on documents that the explainer never saw.

    Whoever shows one that isn't `reliable` says so. An empty `text` means that no description was
    found at all.
    """

    source: int  # row of the code
    feature: int
    text: str
    explainer: str  # the option of conf/explainer that made it
    model: str | None = None  # the language model that wrote it
    prompt_hash: str = ""  # of what it was asked; of the settings, for a search
    scores: Mapping[str, float] = field(default_factory=dict)
    baselines: Mapping[str, float] = field(default_factory=dict)
    n_examples: int = 0  # contexts or tokens that the scores come from
    reliable: bool = False
    failing: tuple[Failure, ...] = ()


def read_explanations(folder: Path) -> dict[tuple[int, int], Explanation]:
    """(source, feature) -> its explanation, of a features/ folder; empty where there is no file.

    A last line that a killed process left half written is passed over.

    Raises:
        ValueError: another line is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return {}
    found = {}
    for explanation in _lines(path):
        found[explanation.source, explanation.feature] = explanation
    return found


def add_explanations(folder: Path, explanations: Iterable[Explanation]) -> Path:
    """Appends to the file, and returns once the disk has it.

    Raises:
        ValueError: a score is not finite: an undefined score is left out of `scores`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE
    text = "".join(_written(explanation) for explanation in explanations)
    with path.open("ab") as file:
        file.truncate(_whole_lines(path))
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())
    return path


def _lines(path: Path) -> Iterator[Explanation]:
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            yield _read(json.loads(line))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):  # nothing ends it: the process was killed while it wrote
                return
            raise ValueError(f"{path} line {number}: not an explanation ({error})") from error


def _read(entry: Any) -> Explanation:
    if not isinstance(entry, dict):
        raise TypeError(f"want a JSON object, not {type(entry).__name__}")
    failing = tuple(Failure(**one) for one in entry.get("failing", []))
    return Explanation(**{**entry, "failing": failing})


def _written(explanation: Explanation) -> str:
    where = f"source {explanation.source}, feature {explanation.feature}"
    for name, value in (*explanation.scores.items(), *explanation.baselines.items()):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {name}={value}; leave out what is undefined")
    return json.dumps(asdict(explanation), ensure_ascii=False, allow_nan=False) + "\n"


def _whole_lines(path: Path) -> int:
    """Bytes of the file up to its last line's end."""
    return path.read_bytes().rfind(b"\n") + 1
