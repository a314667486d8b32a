"""What the page of a graph shows of its features, out of a run's feature store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

from transformers import PreTrainedTokenizerBase

from dictlearn.attribution.page.columns import Node
from dictlearn.pages.record import Pieces, page_of, short, summary
from dictlearn.pages.scripts import PAGE, Chunks
from dictlearn.store.explanations import Explanation, read_explanations
from dictlearn.store.features import FeatureStore, has_store, open_store
from dictlearn.store.layout import layer_of
from dictlearn.store.records import Feature

NONE, RELIABLE, UNRELIABLE = 0, 1, 2  # as in site/data.js
EXAMPLES = 12  # of the strongest: the feature's own page has all


@dataclass(frozen=True)
class Features:
    """A run's features, for the nodes of a graph of its dictionary.

    Args:
        store: its feature store.
        explanations: descriptions by (source, index); `read_explanations` reads a run's.
        tokenizer: of the model; None shows token ids.
    """

    store: FeatureStore
    explanations: Mapping[tuple[int, int], Explanation]
    tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def of_run(
        cls, run: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
    ) -> Features | None:
        """Those of a run's features/ with its descriptions, or None if `dictlearn features` was not run.

        Raises ValueError if they are damaged, or were made from another dictionary than the run's.
        """
        if not has_store(run):
            return None
        store = open_store(run)
        explanations = read_explanations(store.folder, store.info.dictionary_sha256)
        return cls(store, explanations, tokenizer)

    def key_of(self, node: Node) -> tuple[int, int] | None:
        """(source, index) of a node's feature in the store, or None if it has no such feature."""
        source = self._sources.get(node.row - 1)
        inside = node.index is not None and node.index < self.store.info.n_features
        return (source, node.index) if source is not None and inside else None  # type: ignore[return-value]

    @cached_property
    def _sources(self) -> dict[int | None, int]:
        """The row of the code that a layer's features are in, by layer."""
        info = self.store.info
        return {layer_of(info, source): source for source in range(info.code_sources)}


def written(
    nodes: Sequence[Node], features: Features, page_folder: Path, data_folder: Path
) -> dict[str, Any]:
    """Writes the records of the graph's features; returns the columns and facts about them.

    A feature that is active at several positions is several nodes with one record, whose number is
    its place among the graph's features.
    """
    store = features.store
    keys = [features.key_of(node) for node in nodes]
    place = {key: number for number, key in enumerate(sorted({key for key in keys if key}))}
    pieces, chunks = Pieces(features.tokenizer), Chunks(data_folder)
    rows, similar = [], []
    for (source, index), number in place.items():
        feature, explanation = (
            store.feature(source, index),
            features.explanations.get((source, index)),
        )
        chunks.add(_record(feature, explanation, pieces, number, store.info.n_features))
        rows.append(_row(store, feature, explanation, pieces))
        similar += [
            [number, place[s, i], short(cosine)]
            for s, i, cosine in feature.neighbours
            if place.get((s, i), -1) > number
        ]
    chunks.flush()
    return {
        "records": [-1 if key is None else place[key] for key in keys],
        "features": rows,
        "chunk_rows": chunks.first_rows,
        "similar": similar,
        "site": _site(store, page_folder),
    }


def _record(
    feature: Feature, explanation: Explanation | None, pieces: Pieces, number: int, n_features: int
) -> dict[str, Any]:
    whole = page_of(feature, explanation, pieces, n_features)
    shown = ("density", "count", "maximum", "mean", "writes", "explanation")
    return {
        "row": number,
        "top": whole["top"][:EXAMPLES],
        **{key: whole[key] for key in shown},
    }


def _row(
    store: FeatureStore, feature: Feature, explanation: Explanation | None, pieces: Pieces
) -> list[Any]:
    """[name, address in the site of features, description, its status, tokens it fires on]."""
    name = store.name(feature.source, feature.index)
    text = "" if explanation is None else explanation.text
    status = NONE if not text else RELIABLE if explanation and explanation.reliable else UNRELIABLE
    return [name, f"#{quote(name, safe='/:')}", text, status, summary(feature, pieces)]


def _site(store: FeatureStore, folder: Path) -> str | None:
    """The way from the page to the site of the run's features, if there is one."""
    if not (store.folder / PAGE).is_file():
        return None
    way = os.path.relpath(store.folder.resolve(), folder.resolve())
    return quote(f"{Path(way).as_posix()}/{PAGE}")
