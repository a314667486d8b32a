"""The names of features: <source>/<index>, such as resid_post.1/266.

This file does not import torch: reports and tables write such names too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

SHARED = "all"  # the source of a code that all sites share, a crosscoder's


def code_names(sources: Sequence[str], code_sources: int) -> tuple[str, ...]:
    """The name of each source of a code: its site, or SHARED for a code that all sites share."""
    return tuple(sources) if code_sources == len(sources) else (SHARED,)


def feature_name(names: Sequence[str], source: int, index: int) -> str:
    """The name of a feature; `names` are those of the code's sources."""
    return f"{names[source]}/{index}"


def feature_named(name: str, names: Sequence[str], n_features: int) -> tuple[int, int]:
    """(source, index) of `resid_post.1/266`, `0/266`, or `266` if there is one source.

    Raises ValueError for a feature that does not exist.
    """
    before, slash, number = str(name).rpartition("/")
    known = {str(i): i for i in range(len(names))} | {site: i for i, site in enumerate(names)}
    source = known.get(before) if slash else (0 if len(names) == 1 else None)
    if source is None or not re.fullmatch(r"[0-9]{1,12}", number) or int(number) >= n_features:
        raise ValueError(
            f"{name}: want <source>/<index> with a source of {', '.join(names)} and an index "
            f"from 0 to {n_features - 1}"
        )
    return source, int(number)
