"""The text on which features are explained and scored, and their firings in it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.capture import batch_at
from dictlearn.lm.language_model import LanguageModel
from dictlearn.sparsity.topk import TopK
from dictlearn.store.split import split_of
from dictlearn.types import Code, DocumentWindows, Progress, spread

Index = NDArray[np.int64]


@final
@dataclass(frozen=True, eq=False)
class Firings:
    """The firings of each feature on the N tokens of a sample, as compressed columns."""

    n_features: int  # F, per source
    starts: Index  # [S*F + 1]
    tokens: NDArray[np.int32]  # token of each firing, ascending within a feature
    values: NDArray[np.float32]

    def of(self, source: int, feature: int) -> tuple[Index, NDArray[np.float32]]:
        """(tokens, activations) of one feature."""
        column = source * self.n_features + feature
        low, high = self.starts[column], self.starts[column + 1]
        return self.tokens[low:high].astype(np.int64), self.values[low:high]


@final
@dataclass(frozen=True, eq=False)
class Sample:
    """W windows of P held-out tokens, N of which a dictionary sees.

    Explainers see documents of the "explain" half, and scores come from the "score" half; no document
    is in both. Where documents are so few that one half has none (a single file of text), windows
    are halved instead; no token is in both.
    """

    tokens_WP: NDArray[np.int64]
    kept_WP: NDArray[np.bool_]  # N true: neither special nor padding
    starts_WP: NDArray[np.bool_]  # first tokens of documents
    documents_WP: Index
    windows: tuple[int, ...]  # number of each row's window in the split

    @cached_property
    def places_N(self) -> Index:
        """Row * P + position of each token that a dictionary sees."""
        return np.flatnonzero(self.kept_WP)

    @cached_property
    def documents_N(self) -> Index:
        return self.documents_WP.ravel()[self.places_N]

    @cached_property
    def units_N(self) -> Index:
        """The document of each token, or its window where windows are halved: units of the split."""
        if self.halved_by_document:
            return self.documents_N
        return np.array(self.windows)[self.places_N // self.kept_WP.shape[1]]

    @cached_property
    def halved_by_document(self) -> bool:
        scored_N = _scored(self.documents_N)
        return bool(scored_N.any() and not scored_N.all())

    @cached_property
    def to_score_N(self) -> NDArray[np.bool_]:
        """bool: marks the tokens of the "score" half."""
        return _scored(self.units_N)


def _scored(unit_N: Index) -> NDArray[np.bool_]:
    numbers, unit_N = np.unique(unit_N, return_inverse=True)
    return np.array([split_of(int(n)) == "score" for n in numbers], bool)[unit_N]


@torch.no_grad()
def take_sample(
    lm: LanguageModel,
    dictionaries: Mapping[str, Dictionary],
    windows: DocumentWindows,
    n_tokens: int,
    batch_windows: int = 8,
    progress: Progress | None = None,
) -> tuple[Sample, dict[str, Firings]]:
    """Reads about `n_tokens` positions, of evenly spread windows, for all dictionaries at once.

    Args:
        dictionaries: dictionaries by name, with the same sources, on the model's device.

    Raises:
        ValueError: the text holds no token that a dictionary sees.
    """
    sources = next(iter(dictionaries.values())).sources
    context = windows.context
    chosen = spread(windows, n_tokens)
    n_windows = len(chosen)
    parts: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {name: [] for name in dictionaries}
    tokens, kept, documents, n_kept = [], [], [], 0
    for start in range(0, n_windows, batch_windows):
        indices = chosen[start : start + batch_windows]
        tokens_BP = windows.window_batch(indices)
        kept_BP = windows.kept(indices)
        x_NSD = batch_at(lm, tokens_BP, kept_BP, sources).x_NSD
        for name, dictionary in dictionaries.items():
            parts[name].append(_entries(dictionary.encode(x_NSD), n_kept))
        tokens.append(tokens_BP)
        kept.append(kept_BP)
        documents.append(windows.documents(indices))
        n_kept += int(kept_BP.sum())
        if progress is not None:
            progress(min(start + batch_windows, n_windows) * context, n_windows * context)
    if n_kept == 0:
        raise ValueError("data: the held-out split has no tokens to explain features on")
    kept_WP, documents_WP = torch.cat(kept).numpy(), torch.cat(documents).numpy()
    sample = Sample(
        torch.cat(tokens).numpy(),
        kept_WP,
        _document_starts(windows, chosen, documents_WP, kept_WP),
        documents_WP,
        tuple(chosen),
    )
    return sample, {name: _columns(parts[name], d) for name, d in dictionaries.items()}


@torch.no_grad()
def random_like(dictionary: Dictionary, x_NSD: Tensor, seed: int = 0) -> Dictionary:
    """An untrained dictionary of the same shape, with random directions.

    It is centred on the mean of `x_NSD`, so that its features respond to differences of tokens. TopK
    gives it the L0 that `dictionary` has on `x_NSD`.
    """
    l0 = float(dictionary.encode(x_NSD).l0_NS.double().mean())
    shape = replace(dictionary.shape, k=float(max(1, round(l0))), prefixes=())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = Dictionary(shape, partial(TopK, k=int(shape.k)))
    untrained = untrained.to(x_NSD).eval().requires_grad_(False)
    mean_1SD = x_NSD.mean(0, keepdim=True)
    if shape.centre:
        untrained.initialise(mean_1SD)
    pre = untrained.encoder.pre(untrained.read(mean_1SD))
    untrained.encoder.b_enc.sub_(pre.view_as(untrained.encoder.b_enc))
    return untrained


def _entries(code: Code, first: int) -> tuple[Tensor, Tensor, Tensor]:
    """(column, token, value) of a code's entries; `first` is the number of its first token."""
    return (
        code.pattern.columns.int().cpu(),
        (code.rows // code.n_sources + first).int().cpu(),
        code.values.float().cpu(),
    )


def _columns(parts: Iterable[tuple[Tensor, Tensor, Tensor]], dictionary: Dictionary) -> Firings:
    column, token, value = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    order = column.argsort(kind="stable")
    n_columns = dictionary.code_sources * dictionary.n_features
    starts = np.searchsorted(column[order], np.arange(n_columns + 1))
    return Firings(dictionary.n_features, starts, token[order], value[order])


def _document_starts(
    windows: DocumentWindows, chosen: Sequence[int], documents_WP: Index, kept_WP: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """bool [W, P]: marks the first token of each document, after any special token before it."""
    before = [int(windows.documents([i - 1])[0, -1]) if i else -1 for i in chosen]
    previous_WP = np.concatenate([np.array(before)[:, None], documents_WP[:, :-1]], 1)
    new_WP = documents_WP != previous_WP
    starts_WP = new_WP & kept_WP
    starts_WP[:, 1:] |= new_WP[:, :-1] & ~kept_WP[:, :-1]
    return starts_WP
