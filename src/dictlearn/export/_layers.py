"""What the formats of one source and one target have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dictlearn import __version__
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import layered, split_layers


def refusal(tool: str, dictionary: Dictionary) -> str | None:
    """Why not even layer by layer; None where each source has its own features and target."""
    if layered(dictionary):
        return None
    if not dictionary.decoder.writes_directions:
        why = "features write no fixed vectors"
    elif dictionary.code_sources < dictionary.n_sources:
        why = "one code is read from several sites"
    else:
        why = "a feature writes to several layers"
    return f"{tool} knows dictionaries of one source and one target; in a {dictionary.kind} {why}"


def layers(dictionary: Dictionary, folder: Path) -> Iterator[tuple[Dictionary, Path]]:
    """(a dictionary of one source, its folder): this one where it is alone, else one a source."""
    whole = split_layers(dictionary)
    for one in whole:
        inner = folder if len(whole) == 1 else folder / one.sources[0]
        inner.mkdir(exist_ok=True)
        yield one, inner


def first(dictionary: Dictionary, folder: str) -> str:
    """The folder of the first layer, of those that `layers` writes under `folder`."""
    return folder if dictionary.n_sources == 1 else f"{folder}/{dictionary.sources[0]}"


def thresholds(dictionary: Dictionary) -> Tensor:
    """Thresholds [S, F] of the sparsity as JumpReLU, whose values are pre-activations."""
    form = dictionary.sparsity.as_jumprelu(dictionary.encoder.b_enc)
    assert form is not None and dictionary.sparsity.selects, dictionary.sparsity.name
    return form.threshold_SF


def said(one: Dictionary) -> dict[str, Any]:
    """What our own importers read back, beside what the format asks for."""
    return {
        "version": __version__,
        "source": one.sources[0],
        "target": one.targets[0],
        "k": one.shape.k,
    }


def text_of(training: Mapping[str, Any]) -> str:
    """Which text it was trained on, in a word: a hub id, files, or the standard library."""
    data = training.get("data")
    data = data if isinstance(data, Mapping) else {}
    builder = str(data.get("_target_", "unknown")).rpartition(".")[2]
    return str(data.get("path") or data.get("paths") or builder.removesuffix("_windows"))


def context_of(training: Mapping[str, Any], longest: int) -> int:
    """Tokens in a window of that text."""
    data = training.get("data")
    context = data.get("context") if isinstance(data, Mapping) else None
    return context if isinstance(context, int) else longest
