"""Read JSON strictly. Whatever a file contains, reading returns its content or raises ValueError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dictlearn.disk.errors import content_error, error_text

JSON_BYTES = 256 << 20


def read_json(path: Path, largest: int = JSON_BYTES) -> Any:
    """Reads strict JSON: without duplicate keys and NaN, bounded in size (bytes) and depth.

    Raises:
        ValueError: one sentence naming the file.
    """
    try:
        if path.stat().st_size > largest:
            raise ValueError(f"more than {largest >> 20} MiB")
        return json.loads(
            path.read_bytes(), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable: {content_error(error)}") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is not readable: {error_text(error)}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("an object has the same key twice")
    return members


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
