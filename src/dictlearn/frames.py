"""Tables for pandas, which dictlearn does not require."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any


def data_frame(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A pandas.DataFrame of `rows`. Raises ImportError if pandas is not installed."""
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise ImportError(
            "to_pandas() needs pandas, which is not installed: pip install pandas; "
            "rows() gives the same as plain dictionaries"
        ) from error
    return pandas.DataFrame(rows)
