"""The objects that `dictlearn.train` and `dictlearn.evaluate` return."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, final

from rich.console import Console

from dictlearn.api.features import Features
from dictlearn.ckpt.dictionary import load_dictionary
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.evals import layers
from dictlearn.evals.record import read_record
from dictlearn.evals.table import renderable
from dictlearn.words import a

WIDTH = 90  # columns of a printed table


@final
class Run:
    """A finished run: its folder and the results in it."""

    def __init__(self, path: Path):
        self.path = path  # absolute

    @property
    def report(self) -> Path:
        """A page with curves and figures, to open in a browser."""
        return self.path / "report.html"

    @cached_property
    def dictionary(self) -> Dictionary:
        """The dictionary in inference form, as `dictlearn.load` returns it."""
        dictionary = load_dictionary(self.path)
        dictionary.figures = figures_of(self.path, dictionary)
        return dictionary

    @property
    def figures(self) -> dict[str, float]:
        """Figures on held-out text, by the names of figures.json: fvu, l0, dead, ce_increase, kl, ..."""
        return numbers(read_record(self.path).get("figures"))

    @property
    def features(self) -> Features:
        """The features that `dictlearn features run=...` stored. Raises ValueError before that."""
        return Features(self.path)

    def __repr__(self) -> str:
        return f"Run in {self.path}\n{self.dictionary!r}"


@final
class Evaluation:
    """Figures of a dictionary beside those of baselines, on the same text."""

    def __init__(self, path: Path, dictionary: str | Path):
        self.path = path  # the folder with figures.json and report.html; absolute
        self.record: Mapping[str, Any] = read_record(path)  # all that figures.json holds
        self._dictionary = dictionary

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def figures(self) -> dict[str, float]:
        """fvu, l0, dead, ce_increase, kl, ...; undefined figures are left out."""
        return numbers(self.record["figures"])

    @property
    def baselines(self) -> dict[str, dict[str, float]]:
        """The same figures for PCA, mean ablation and zero ablation."""
        return {name: numbers(row) for name, row in self.record["baselines"].items()}

    @property
    def tokens(self) -> int:
        """The number of tokens that were read."""
        return self.record["text"]["tokens"]

    @cached_property
    def dictionary(self) -> Dictionary:
        dictionary = load_dictionary(self._dictionary)
        dictionary.figures = {"tokens": float(self.tokens), **self.figures}
        return dictionary

    def __repr__(self) -> str:
        """The table that the command line prints."""
        console = Console(file=io.StringIO(), width=WIDTH)
        console.print(renderable(self.record), *layers.renderables(self.record), sep="\n")
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue().strip("\n")


def place_of(function: str, value: Any) -> str | Path:
    """The folder or hub id of a run or dictionary, the argument `value` of `function`.

    Raises:
        ValueError: it is of another type, or empty.
    """
    if isinstance(value, Run):
        return value.path
    if isinstance(value, str | Path) and str(value).strip():
        return value
    what = repr(value) if value is None or isinstance(value, str) else a(type(value).__name__)
    saved = "; save it first" if isinstance(value, Dictionary) else ""
    raise ValueError(f"{function}: want a run, a folder or a hub id, not {what}{saved}")


def figures_of(path: Path, dictionary: Dictionary) -> dict[str, float]:
    """Held-out figures in the folder of a run, or of its dictionary; empty if there are none.

    A figures.json of another dictionary, or a damaged one, counts as none.
    """
    for folder in (path, path.parent):
        if folder == path.parent and path.name != "dictionary":
            continue
        try:
            record = read_record(folder)
            theirs = record["dictionary"]
            same = (theirs["kind"], theirs["n_features"], theirs["sources"]) == (
                dictionary.kind,
                dictionary.n_features,
                list(dictionary.sources),
            )
            if same:
                tokens = numbers({"tokens": record["text"]["tokens"]})
                return tokens | numbers(record["figures"])
        except (ValueError, KeyError, TypeError, OSError):
            continue
    return {}


def numbers(figures: Any) -> dict[str, float]:
    """The finite numbers of a JSON object."""
    if not isinstance(figures, Mapping):
        return {}
    plain = {str(k): v for k, v in figures.items() if isinstance(v, int | float)}
    return {name: float(value) for name, value in plain.items() if math.isfinite(value)}
