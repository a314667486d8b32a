"""Reads the figures and settings of runs for comparison."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from dictlearn.disk.replace import is_run
from dictlearn.evals.record import FILE, read_record
from dictlearn.evals.report.settings import parsed, read_settings
from dictlearn.evals.table import MISSING, label_of

# Settings that don't change what is trained, or can't be compared.
SKIPPED = ("name", "run_dir", "resume", "logger", "callbacks", "trainer", "eval")
DESCRIBED = (
    "model",
    "kind",
    "sites",
    "features",
    "objective.terms",
)  # these follow from other settings, if there are any
DEEPEST = 3  # levels of folders that are searched for runs


@dataclass(frozen=True, eq=False)
class Run:
    """A run: one row of the table and one point of each chart."""

    folder: Path
    name: str
    record: Mapping[str, Any]
    settings: Mapping[str, str]

    def figure(self, key: str) -> float | None:
        """A figure; `tokens` is the number of tokens that the others rest on.

        Special tokens and turns of other roles are read and don't count. Figures without the eval
        `sparsity`, which counts, have the number of tokens that were read.
        """
        value: object = self.record["figures"].get(key)
        text = self.record.get("text")
        if value is None and key == "tokens" and isinstance(text, dict):
            value = text.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            return None
        return float(value) if abs(value) < math.inf else None

    @property
    def report(self) -> Path | None:
        path = self.folder / "report.html"
        return path if path.is_file() else None


class Found(NamedTuple):
    """Folders of runs and evaluations: those with figures, and runs without any yet."""

    runs: list[Path]
    unfinished: list[Path]


def run_folders(folders: Iterable[Path]) -> Found:
    """The runs in some folders, each a run itself or a folder of runs.

    Raises ValueError for a folder that holds none.
    """
    done: dict[Path, Path] = {}
    unfinished: dict[Path, Path] = {}
    for folder in folders:
        found = list(_runs_in(folder, DEEPEST))
        if not found:
            where = "has no figures" if folder.is_dir() else "no such folder"
            raise ValueError(
                f"runs: {folder}: {where}; want the folders of runs that came to their end, or of "
                "evaluations (dictlearn evaluate writes figures.json)"
            )
        for run in found:
            (done if (run / FILE).is_file() else unfinished)[run.resolve()] = run
    return Found(list(done.values()), list(unfinished.values()))


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / FILE).is_file() or (folder.is_dir() and is_run(folder)):
        yield folder
    elif depth > 0 and folder.is_dir():
        for path in sorted((path for path in folder.iterdir() if path.is_dir()), key=_natural):
            yield from _runs_in(path, depth - 1)


def on_other_texts(runs: Sequence[Run]) -> bool:
    """Whether the figures are of different tokens, as the hashes of these say."""
    texts = [run.record.get("text") for run in runs]
    return len({str(text.get("sha256")) if isinstance(text, dict) else "" for text in texts}) > 1


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, named by their paths below the common folder. Raises ValueError for a damaged one."""
    names = _names([folder.resolve() for folder in folders])
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read(folder: Path, name: str) -> Run:
    record = read_record(folder)
    return Run(folder, name, record, _settings(folder / "config.yaml") | _described(record))


def _names(folders: Sequence[Path]) -> list[str]:
    """The paths without their common beginning; a single path's last part."""
    parts = [folder.parts for folder in folders]
    shared = 0
    while all(len(p) > shared + 1 and p[: shared + 1] == parts[0][: shared + 1] for p in parts):
        shared += 1
    return ["/".join(p[shared:]) for p in parts]


def _described(record: Mapping[str, Any]) -> dict[str, str]:
    """The dictionary's description from figures.json; an evaluation has no other file."""
    dictionary, model = record.get("dictionary"), record.get("model")
    if not isinstance(dictionary, dict) or not isinstance(model, dict):
        return {}
    sources, targets = dictionary.get("sources"), dictionary.get("targets")
    if not isinstance(sources, list) or not isinstance(targets, list):
        return {}
    sites = ", ".join(map(str, sources))
    if targets != sources:
        sites += " \N{RIGHTWARDS ARROW} " + ", ".join(map(str, targets))
    return {
        "model": str(model.get("name")),
        "kind": label_of({"kind": dictionary.get("kind")}),
        "sites": sites,
        "features": _plain(dictionary.get("n_features")),
    }


def _settings(path: Path) -> dict[str, str]:
    """The run's configuration: dotted keys and plain values, as text."""
    text = read_settings(path)
    config = parsed(text) if text else {}
    return dict(_dotted({key: value for key, value in config.items() if key not in SKIPPED}))


def _dotted(tree: Mapping[Any, Any], above: str = "") -> Iterable[tuple[str, str]]:
    for name, value in tree.items():
        key = f"{above}{name}"
        if name == "_target_":
            yield above.rstrip("."), str(value).rpartition(".")[2]
        elif isinstance(value, Mapping):
            if name == "terms":  # an objective is which terms it has
                yield key, ", ".join(map(str, value))
            yield from _dotted(value, f"{key}.")
        elif not str(name).startswith("_"):
            yield key, _plain(value)


def _plain(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    return str(value)


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings that all runs have, with values that differ; derived ones are left out."""
    if len(runs) < 2:
        return []
    first, *others = runs
    shared = [key for key in first.settings if all(key in run.settings for run in others)]
    keys = [key for key in shared if any(r.settings[key] != first.settings[key] for r in others)]
    keys = _set(keys, runs)
    set_by = {_pattern(runs, key) for key in keys if key not in DESCRIBED}
    return [key for key in keys if key not in DESCRIBED or _pattern(runs, key) not in set_by]


def _set(keys: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The keys without copies of others of the same name, as sparsity.k is of dict.k."""
    kept: dict[tuple[str, ...], str] = {}
    for key in keys:
        same = (key.rpartition(".")[2], *(run.settings[key] for run in runs))
        if "." in kept.get(
            same, "."
        ):  # a key at the top was set by the user; else the last is kept
            kept[same] = key
    return [key for key in keys if key in kept.values()]


def _pattern(runs: Sequence[Run], key: str) -> tuple[str, ...]:
    """Which runs share a value; equal for two settings that change together."""
    values = [run.settings[key] for run in runs]
    return tuple(str(values.index(value)) for value in values)


def in_order(values: Iterable[str]) -> list[str]:
    """The distinct values, numbers sorted by size."""
    return sorted(set(values), key=_by_size)


def number(value: str) -> float | None:
    """A setting's text as a number; None if it is none."""
    try:
        return float(value.replace(",", ""))
    except ValueError:
        return None


def _by_size(value: str) -> tuple[int, float, str]:
    size = number(value)
    return (1, 0.0, value) if size is None else (0, size, "")


def _natural(path: Path) -> tuple[tuple[int, float, str], ...]:
    """A sort key that puts k=8 before k=16, and 2 before 10."""
    words = path.name.replace(",", "=").split("=")
    return tuple(_by_size(word) for word in words)
