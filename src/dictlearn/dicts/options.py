"""Options that all kinds whose features are vectors have, in one place.

A kind takes them as `**options: Unpack[Options]` and gives them to `features_of`, which makes of them
what `Shape` wants. A yaml of `conf/dict` names those that it sets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from dictlearn.ranges import Count, Positive


class Options(TypedDict, total=False):
    """Keys below dict=.

    n_features: per source; null means expansion * width.
    expansion: features per dimension, 12 where nothing is said.
    unit_norm: whether features are kept at decoder norm 1 during training.
    encoder_scale: on the encoder rows that training starts from.
    prefixes: widths (or fractions of the features) of nested dictionaries (Matryoshka, Bussmann et al.
        2025).
    """

    n_features: Count | None
    expansion: Positive
    unit_norm: bool
    encoder_scale: Positive
    prefixes: Sequence[Positive]


class Features(TypedDict):
    """Fields of `Shape`."""

    n_features: int
    unit_norm: bool
    encoder_scale: float
    prefixes: tuple[int, ...]


def features_of(options: Options, width: int, vectors: float = 2) -> Features:
    """How many features, and what they are like.

    `vectors` are those that a feature has, its encoder's one: where nothing else is said there are as
    many features as make the parameters of expansion * width of 2 vectors each.

    Raises:
        TypeError: an option that there isn't.
        ValueError: no features.
    """
    known = Options.__annotations__
    if odd := sorted(options.keys() - known):
        raise TypeError(f"{odd[0]}: no kind has such an option; want {', '.join(known)}")
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
    """Nested widths in features; numbers up to 1 that aren't whole are fractions of all of them."""
    return tuple(
        round(p * n_features) if isinstance(p, float) and p <= 1 else int(p) for p in prefixes
    )
