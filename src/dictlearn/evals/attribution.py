"""What circuit-tracer found of a run's dictionaries: <run>/attribution.json, for the report.

`scripts/attribution_scores.py` writes it, in an environment that this package knows nothing of:

    {"format": 1, "versions": {...}, "dictionaries": {"clt": {"replacement": 0.8, "completeness": 0.9,
     "prompts": [{"prompt", "tokens", "active_features", "replacement", "completeness"}, ...]}}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dictlearn.ckpt.files import read_json
from dictlearn.evals.table import Column, cell

FILE = "attribution.json"
FORMAT = 1
LONGEST = 48  # characters of a prompt

COLUMNS = (
    Column(
        "replacement", "replacement", "", ".3f", "of the tokens' influence, what no error carries"
    ),
    Column("completeness", "completeness", "", ".3f", "of nodes' inputs, what no error gives"),
    Column("active_features", "active\nfeatures", "", ".0f", "at all layers and positions"),
    Column("tokens", "tokens", "", ".0f", "of the prompt, BOS among them"),
)


def read_attribution(run: Path) -> dict[str, Any] | None:
    """The file's content, None where there is no file. ValueError where it is another."""
    path = run / FILE
    if not path.is_file():
        return None
    found = read_json(path)
    try:
        if found["format"] != FORMAT:
            raise ValueError(f"{path}: want format {FORMAT}; trace again")
        list(rows(found))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not what attribution_scores.py writes ({error})") from error
    return found


def rows(found: Mapping[str, Any]) -> Iterator[tuple[str, str, list[str], bool]]:
    """(prompt, dictionary, cells, whether it is a mean): the means first; a prompt stands once."""
    dictionaries = found["dictionaries"]
    for name, one in dictionaries.items():
        prompts = one["prompts"]
        means = {
            column.key: sum(prompt[column.key] for prompt in prompts) / len(prompts)
            for column in COLUMNS
        }
        label = "" if name != next(iter(dictionaries)) else f"mean of {len(prompts)}"
        yield label, name, [cell(column, means) for column in COLUMNS], True
    for number in range(max((len(one["prompts"]) for one in dictionaries.values()), default=0)):
        written = False
        for name, one in dictionaries.items():
            if number < len(one["prompts"]):
                prompt = one["prompts"][number]
                label = "" if written else _shortened(prompt["prompt"])
                written = True
                yield label, name, [cell(column, prompt) for column in COLUMNS], False


def _shortened(prompt: str) -> str:
    """The end of it: what comes next depends on that most."""
    line = prompt.replace("\n", "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS} ")
    return line if len(line) <= LONGEST else "\N{HORIZONTAL ELLIPSIS}" + line[1 - LONGEST :]
