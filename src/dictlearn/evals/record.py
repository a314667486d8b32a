"""Reads and writes figures.json: an evaluation's figures and all that is needed to repeat it."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dictlearn import __version__
from dictlearn.disk.errors import content_error
from dictlearn.disk.replace import check_addable
from dictlearn.disk.whole import write_json

if TYPE_CHECKING:  # reading a record needs no torch
    from torch import Tensor

    from dictlearn.evals.evaluation import Evaluation
    from dictlearn.types import DictionaryLike, ModelInfo

FORMAT = 1
FILE = "figures.json"
HELD_OUT, WHOLE = "held out", "whole"  # parts of a text
ROWS = "rows"  # in the place of a text: rows of activations that have none
MOST_BYTES = 64 << 20
# Per-feature series belong to the features themselves; these are small and worth replotting.
KEPT_SERIES = (
    "density_histogram",
    "l0_histogram",
    "l0_by_position",
    "error_by_position",
    "decoder_norms",
    "relative_norm_histogram",
    "largest_share_histogram",
    "strongest_target",
    "nearest_cosine_histogram",
    "alignment_histogram",
    "ce_by_position",
)


def record_of(
    evaluation: Evaluation,
    dictionary: DictionaryLike,
    info: ModelInfo,
    data: Mapping[str, Any],
    beside: Mapping[str, tuple[DictionaryLike, Evaluation]] | None = None,
    part: str = HELD_OUT,
) -> dict[str, Any]:
    """The content of figures.json, as plain JSON values.

    `data` are the user's settings of the text; the hash of its tokens is added. `beside` maps labels
    to other dictionaries evaluated on the same text. `part` names the part of the text that was read.
    """
    from dictlearn.evals.prefixes import nested  # late: it needs torch

    widths = nested(dictionary)
    others = {
        label: {"dictionary": _described(other), "figures": _plain(evaluated.figures)}
        for label, (other, evaluated) in (beside or {}).items()
    }
    return {
        "format": FORMAT,
        "dictionary": _described(dictionary),
        "model": dict(vars(info)),
        "text": {
            "tokens": evaluation.tokens,
            "sha256": evaluation.tokens_sha256,
            "data": dict(data),
            "part": part,
        },
        "figures": _plain(evaluation.figures),
        "beside": others,
        "prefixes": {
            row: {"features": widths[row], "figures": _plain(figures)}
            for row, figures in evaluation.rows.items()
            if row in widths
        },
        "baselines": {
            row: _plain(figures) for row, figures in evaluation.rows.items() if row not in widths
        },
        "series": {
            name: _rounded(evaluation.series[name])
            for name in KEPT_SERIES
            if name in evaluation.series
        },
        "versions": versions(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(evaluation.seconds, 2),
    }


def versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "transformers")}
    return {"python": platform.python_version(), "dictlearn": __version__} | libraries


def write_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Writes figures.json whole or not at all."""
    path = folder / FILE
    write_json(path, record)
    return path


def check_record_replaceable(folder: Path, overwrite: bool) -> None:
    """SaveError where a folder holds anything but an evaluation and what its report shows."""
    evaluated = _is_record(folder / FILE)

    def ours(path: Path) -> bool:
        if path.name in (FILE, "report.html"):
            return evaluated and path.is_file()
        if path.name == "figures":
            pictures = path.is_dir() and all(p.suffix == ".png" for p in path.iterdir())
            return evaluated and pictures
        if path.name == "features":  # of the same dictionary, with the same output=
            return any((path / name).exists() for name in ("store", "explanations.jsonl"))
        return path.name == "attribution.json"

    check_addable(folder, ours, overwrite)


def _is_record(path: Path) -> bool:
    """Whether a file is one that `write_record` wrote."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and {"format", "figures", "versions"} <= record.keys()


def read_record(folder: Path) -> dict[str, Any]:
    """The content of figures.json. Raises ValueError where there is none, or one of another form."""
    path = folder / FILE
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path}: too large for what dictlearn evaluate writes")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no figures here; dictlearn evaluate writes them") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path}: not a JSON file ({content_error(error)}); evaluate again"
        ) from error
    if not isinstance(record, dict) or not isinstance(record.get("figures"), dict):
        raise ValueError(f"{path}: holds no figures; dictlearn evaluate writes them")
    return record


def _described(dictionary: DictionaryLike) -> dict[str, Any]:
    return {
        "kind": dictionary.kind,
        "sources": list(dictionary.sources),
        "targets": list(dictionary.targets),
        "code_sources": dictionary.code_sources,
        "n_features": dictionary.n_features,
        "width": dictionary.width,
        "parameters": sum(parameter.numel() for parameter in dictionary.parameters()),
    }


def _plain(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Undefined figures become null, as JSON has no NaN."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


def _rounded(series: Tensor) -> list[Any]:
    """Nested lists with six significant digits."""
    if series.ndim == 1:
        return [float(f"{value:.6g}") for value in series.tolist()]
    return [_rounded(row) for row in series]
