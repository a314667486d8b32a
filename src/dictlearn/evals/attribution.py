"""Reads <run>/attribution.json, circuit-tracer's figures of a run's dictionaries, for the report.

`scripts/attribution_scores.py` writes the file, in an environment of its own:

    {"format": 1, "versions": {...}, "dictionaries": {"clt": {"replacement": 0.8, "completeness": 0.9,
     "prompts": [{"prompt", "tokens", "active_features", "replacement", "completeness"}, ...]}}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dictlearn.disk.errors import CONTENT_ERRORS, content_error
from dictlearn.disk.strict_json import read_json
from dictlearn.evals.table import Column, cell

FILE = "attribution.json"
FORMAT = 1
LONGEST = 48  # characters of a prompt

COLUMNS = (
    Column(
        "replacement", "replacement", "", ".3f", "share of the tokens' influence not from errors"
    ),
    Column("completeness", "completeness", "", ".3f", "share of nodes' inputs not from errors"),
    Column("active_features", "active\nfeatures", "", ".0f", "at all layers and positions"),
    Column("tokens", "tokens", "", ".0f", "of the prompt, BOS among them"),
)


def read_attribution(run: Path) -> dict[str, Any] | None:
    """The file's content; None without a file. Raises ValueError for a file of another format."""
    path = run / FILE
    if not path.is_file():
        return None
    traced = read_json(path)
    if not isinstance(traced, dict) or traced.get("format") != FORMAT:
        raise ValueError(f"{path}: want format {FORMAT}; trace again")
    try:
        list(rows(traced))
    except CONTENT_ERRORS as error:
        raise ValueError(
            f"{path}: not what attribution_scores.py writes ({content_error(error)})"
        ) from error
    return traced


def rows(traced: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str], bool]]:
    """Yields (prompt, dictionary, cells, whether it is a mean), the means first.

    The prompt is "" after its first row.
    """
    dictionaries = traced["dictionaries"]
    for name, entry in dictionaries.items():
        prompts = entry["prompts"]
        means = {
            column.key: sum(prompt[column.key] for prompt in prompts) / len(prompts)
            for column in COLUMNS
        }
        label = "" if name != next(iter(dictionaries)) else f"mean of {len(prompts)}"
        yield label, name, [cell(column, means) for column in COLUMNS], True
    for number in range(max((len(entry["prompts"]) for entry in dictionaries.values()), default=0)):
        written = False
        for name, entry in dictionaries.items():
            if number < len(entry["prompts"]):
                prompt = entry["prompts"][number]
                label = "" if written else _shortened(prompt["prompt"])
                written = True
                yield label, name, [cell(column, prompt) for column in COLUMNS], False


def _shortened(prompt: str) -> str:
    """The prompt's last `LONGEST` characters, on which the next token depends most."""
    line = prompt.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS} ")
    return line if len(line) <= LONGEST else "\N{HORIZONTAL ELLIPSIS}" + line[1 - LONGEST :]
