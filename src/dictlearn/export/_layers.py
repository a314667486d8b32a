"""Functions for formats whose dictionaries have one source and one target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dictlearn import __version__
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import layered, split_layers
from dictlearn.lm.sites import STANDARDISED
from dictlearn.words import a


def refusal(tool: str, dictionary: Dictionary, standardised: bool = False) -> str | None:
    """The reason why a dictionary can't be split into layers, or None.

    `standardised` says whether the tool can standardise what an autoencoder reads and writes.
    """
    scaled = [s for s in (*dictionary.sources, *dictionary.targets) if s.endswith(STANDARDISED)]
    if scaled and not (standardised and dictionary.sources == dictionary.targets):
        return f"{tool} can't say that {scaled[0]} is standardised token by token"
    if layered(dictionary):
        return None
    if not dictionary.decoder.writes_directions:
        reason = "features write no fixed vectors"
    elif dictionary.code_sources < dictionary.n_sources:
        reason = "one code is read from several sites"
    else:
        reason = "a feature writes to several layers"
    return (
        f"{tool} knows dictionaries of one source and one target; in {a(dictionary.kind)} {reason}"
    )


def layers(dictionary: Dictionary, folder: Path) -> Iterator[tuple[Dictionary, Path]]:
    """(layer, its folder) for each layer of a dictionary; a single one gets `folder` itself."""
    split = split_layers(dictionary)
    for layer in split:
        inner = folder if len(split) == 1 else folder / layer.sources[0]
        inner.mkdir(exist_ok=True)
        yield layer, inner


def first_folder(dictionary: Dictionary, folder: str) -> str:
    """The first of the folders that `layers` writes under `folder`."""
    return folder if dictionary.n_sources == 1 else f"{folder}/{dictionary.sources[0]}"


def thresholds(dictionary: Dictionary) -> Tensor:
    """The thresholds [S, F] of the sparsity as JumpReLU."""
    form = dictionary.sparsity.as_jumprelu(dictionary.encoder.b_enc)
    assert form is not None and dictionary.sparsity.selects, dictionary.sparsity.name
    return form.threshold_SF


def importer_fields(layer: Dictionary) -> dict[str, Any]:
    """Entries for our own importers, which the format doesn't have."""
    return {
        "version": __version__,
        "source": layer.sources[0],
        "target": layer.targets[0],
        "k": layer.shape.k,
    }


def dataset_name(training: Mapping[str, Any]) -> str:
    """The text that the dictionary was trained on: a hub id, files, or the kind of data."""
    data = training.get("data")
    data = data if isinstance(data, Mapping) else {}
    parts = data.get("parts")
    if isinstance(parts, Mapping) and parts:
        return " and ".join(dataset_name({"data": part}) for part in parts.values())
    builder = str(data.get("_target_", "unknown")).rpartition(".")[2]
    return str(data.get("path") or data.get("paths") or builder.removesuffix("_windows"))


def context_length(training: Mapping[str, Any], longest: int) -> int:
    """The number of tokens in a window of that text; `longest` if unknown."""
    data = training.get("data")
    context = data.get("context") if isinstance(data, Mapping) else None
    return context if isinstance(context, int) else longest
