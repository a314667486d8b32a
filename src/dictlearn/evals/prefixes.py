"""Rows for the nested dictionaries of a Matryoshka, each decoded from its first features alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor

from dictlearn.evals.context import EvalContext, Row, RowSource
from dictlearn.types import Code, DictionaryLike


@final
class Prefixes(RowSource):
    """A row for each inner prefix; none for a dictionary that isn't nested."""

    def fit(self, context: EvalContext) -> dict[str, Row]:
        dictionary, encoded = context.dictionary, _Encoded(context.dictionary.encode)

        def row(width: int) -> Row:
            def decode(x_NSD: Tensor, y_NTD: Tensor) -> Tensor:
                code = encoded(x_NSD)
                return dictionary.decode(code.where(code.features < width), x_NSD)

            return decode

        return {label: row(width) for label, width in nested(dictionary).items()}


def nested(dictionary: DictionaryLike) -> dict[str, int]:
    """Label of each inner prefix -> its features per source, the narrowest first."""
    widths = sorted(w for w in dictionary.prefixes if w < dictionary.n_features)
    return {f"first {width:,} features": width for width in widths}


@final
class _Encoded:
    """Caches the code of the last batch, which all prefixes share."""

    def __init__(self, encode: Callable[[Tensor], Code]):
        self._encode = encode
        self._last: tuple[Tensor, Code] | None = None

    def __call__(self, x_NSD: Tensor) -> Code:
        if self._last is None or self._last[0] is not x_NSD:
            self._last = (x_NSD, self._encode(x_NSD))
        return self._last[1]
