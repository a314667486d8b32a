"""Codes of edited features: differences to decode, and codes with the new values in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from dictlearn.types import Code


def values_of(code: Code, row_source: int, feature: int) -> Tensor:
    """A feature's activation on every token, [N]; 0 where it doesn't fire."""
    mine = (code.features == feature) & (code.rows % code.n_sources == row_source)
    values_N = code.values.new_zeros(code.n_tokens)
    values_N[code.rows[mine] // code.n_sources] = code.values[mine]
    return values_N


def code_of(columns: Mapping[tuple[int, int], Tensor], like: Code) -> Code:
    """A code of these (source, feature) -> values [N] alone, of the same sizes as `like`."""
    if not columns:
        none = like.features[:0]
        return _from_entries(none, none, like.values[:0], like)
    keys = sorted(columns)
    values_NE = torch.stack([columns[key] for key in keys], dim=1)
    token, column = values_NE.nonzero(as_tuple=True)
    sources, features = torch.tensor(keys, device=token.device).unbind(1)
    rows = token * like.n_sources + sources[column]
    return _from_entries(rows, features[column], values_NE[token, column], like)


def replaced(code: Code, columns: Mapping[tuple[int, int], Tensor]) -> Code:
    """The code with other values [N] for some (source, feature)."""
    if not columns:
        return code
    keep = torch.ones_like(code.features, dtype=torch.bool)
    for source, feature in columns:
        keep &= (code.features != feature) | (code.rows % code.n_sources != source)
    new = code_of(columns, code)
    return _from_entries(
        torch.cat([code.rows[keep], new.rows]),
        torch.cat([code.features[keep], new.features]),
        torch.cat([code.values[keep], new.values]),
        code,
    )


def joined(codes: Sequence[Code]) -> Code:
    """One code from one of each source, for the same tokens."""
    if len(codes) == 1:
        return codes[0]
    n = len(codes)
    rows = torch.cat([code.rows * n + source for source, code in enumerate(codes)])
    features = torch.cat([code.features for code in codes])
    values = torch.cat([code.values for code in codes])
    row_starts = codes[0].row_starts.new_zeros(codes[0].n_tokens * n + 1)
    like = Code(row_starts, features, values, n, codes[0].n_features)
    return _from_entries(rows, features, values, like)


def spread(code: Code, keep_BP: Tensor) -> Code:
    """The same code with a row for every position; those outside of `keep_BP` are empty."""
    counts = code.l0_NS.new_zeros(keep_BP.numel(), code.n_sources)
    counts[keep_BP.flatten().to(counts.device)] = code.l0_NS
    row_starts = torch.nn.functional.pad(counts.flatten().cumsum(0), (1, 0))
    leading = tuple(keep_BP.shape) if code.n_sources == 1 else None
    return Code(row_starts, code.features, code.values, code.n_sources, code.n_features, leading)


def _from_entries(rows: Tensor, features: Tensor, values: Tensor, like: Code) -> Code:
    order = (rows * like.n_features + features).argsort()
    n_rows = len(like.row_starts) - 1
    row_starts = torch.nn.functional.pad(rows.bincount(minlength=n_rows).cumsum(0), (1, 0))
    return Code(
        row_starts, features[order], values[order], like.n_sources, like.n_features, like.leading
    )
