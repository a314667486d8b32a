"""Build dictionaries of several layers, in which a source writes to its own layer and later ones.

A layer consists of tensors by our names: W_enc [F, D], b_enc [F], W_dec [F, reach, D], b_dec [D] and
maybe threshold [F] and W_skip [D, D]. Slot j of W_dec writes to the j-th layer after its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from dictlearn.ckpt.files import check_numbers
from dictlearn.ckpt.foreign._layer import check_names
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.link import Link
from dictlearn.dicts.shape import Shape
from dictlearn.sparsity.protocol import Sparsity

Layer = dict[str, Tensor]


def check_layer(
    path: Path, layer: Mapping[str, Tensor], first: Mapping[str, Tensor] | None, reach: int
) -> None:
    """Raises ValueError unless names, shapes and values are valid and fit the first layer."""
    check_names(path, layer, ("W_dec", "W_enc", "b_dec", "b_enc"), ("threshold", "W_skip"))
    W_enc = layer["W_enc"]
    if W_enc.ndim != 2 or 0 in W_enc.shape:
        raise ValueError(f"{path}: W_enc has shape {list(W_enc.shape)}; want [features, width]")
    features, width = W_enc.shape
    if first is not None and (set(layer) != set(first) or W_enc.shape != first["W_enc"].shape):
        raise ValueError(f"{path}: its tensors are not those of the first layer")
    shapes = {
        "b_enc": [features],
        "W_dec": [features, reach, width],
        "b_dec": [width],
        "threshold": [features],
        "W_skip": [width, width],
    }
    for name, tensor in layer.items():
        if name != "W_enc" and list(tensor.shape) != shapes[name]:
            raise ValueError(f"{path}: {name} has shape {list(tensor.shape)}; want {shapes[name]}")
    check_numbers(path, layer)
    if "threshold" in layer and bool((layer["threshold"] < 0).any()):
        raise ValueError(f"{path}: a threshold is negative, and features here are positive")


@torch.no_grad()
def build_set(
    kind: str,
    sources: Sequence[str],
    targets: Sequence[str],
    layers: Sequence[Layer],
    k: float,
    sparsity: Callable[..., Sparsity],
    link: Link,
) -> Dictionary:
    """A dictionary of layers that were checked."""
    n_features, width = layers[0]["W_enc"].shape
    shape = Shape(
        kind=kind,
        sources=tuple(sources),
        targets=tuple(targets),
        width=width,
        n_features=n_features,
        k=k,
        skip="W_skip" in layers[0],
        unit_norm=False,
        link=link,
    )
    dictionary = Dictionary(shape, sparsity)
    decoder = dictionary.decoder
    for i, layer in enumerate(layers):
        dictionary.encoder.W_enc[i] = layer["W_enc"]
        dictionary.encoder.b_enc[i] = layer["b_enc"]
        decoder.b_dec[i] = layer["b_dec"]
        for target, rows_FD in enumerate(layer["W_dec"].unbind(1), start=i):
            decoder.written(target, i, slice(None)).copy_(rows_FD)  # a view, for these two links
        if dictionary.W_skip is not None:
            dictionary.W_skip[i] = layer["W_skip"]
        if dictionary.sparsity.name == "jumprelu":
            dictionary.get_parameter("sparsity.raw_threshold_SF")[i] = layer["threshold"]
    return dictionary
