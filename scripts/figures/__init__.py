"""Where the figures of README.md and docs/ come from; scripts/docs_figures.py puts them there."""

from __future__ import annotations

import functools
import json
from typing import Any

from peers import results


@functools.cache
def records(name: str) -> list[dict[str, Any]]:
    """Those of benchmarks/results/<name>.json, the newest last."""
    return json.loads((results.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def newest(name: str, **having: Any) -> dict[str, Any]:
    """The last record of <name>.json whose entries are these."""
    for record in reversed(records(name)):
        if all(record.get(key) == value for key, value in having.items()):
            return record
    raise ValueError(f"benchmarks/results/{name}.json has no record with {having}")
