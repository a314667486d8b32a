"""The options that all kinds share whose features are vectors.

A kind takes them as `**options: Unpack[Options]` and passes them to `features_of`, which returns
arguments of `Shape`. A yaml in `conf/dict` names the options that it sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from dictlearn.ranges import Count, Positive


class Options(TypedDict, total=False):
    """Keys below dict=.

    n_features: features per source; null means expansion * width.
    expansion: features per dimension, 12 by default.
    unit_norm: whether features are kept at decoder norm 1 during training.
    encoder_scale: factor on the initial encoder rows.
    prefixes: numbers (or fractions) of features in nested dictionaries (Matryoshka, Bussmann et al.
        2025).
    """

    n_features: Count | None
    expansion: Positive
    unit_norm: bool
    encoder_scale: Positive
    prefixes: Sequence[Positive]


class Features(TypedDict):
    """The fields of `Shape` that come from `Options`."""

    n_features: int
    unit_norm: bool
    encoder_scale: float
    prefixes: tuple[int, ...]


def features_of(options: Options, width: int, vectors: float = 2) -> Features:
    """The fields of `Shape` for these options.

    A feature has `vectors` vectors, the encoder's included. With n_features null, the dictionary has
    as many parameters as expansion * width features with two vectors each.

    Raises:
        TypeError: an option is unknown.
        ValueError: n_features is below 1.
    """
    known = Options.__annotations__
    if unknown := sorted(options.keys() - known):
        raise TypeError(f"{unknown[0]}: no kind has such an option; want {', '.join(known)}")
    count = options.get("n_features")
    if count is None:
        count = round(2 * options.get("expansion", 12) / vectors * width)
    if count < 1:
        raise ValueError(f"dict.n_features={count}: want at least 1")
    return {
        "n_features": count,
        "unit_norm": options.get("unit_norm", True),
        "encoder_scale": options.get("encoder_scale", 1.0),
        "prefixes": prefix_widths(options.get("prefixes", ()), count),
    }


def prefix_widths(prefixes: Sequence[float], n_features: int) -> tuple[int, ...]:
    """Nested widths in features; floats up to 1 are fractions of `n_features`."""
    return tuple(
        round(p * n_features) if isinstance(p, float) and p <= 1 else int(p) for p in prefixes
    )
