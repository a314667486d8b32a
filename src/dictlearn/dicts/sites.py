"""The sites of a dictionary that is configured by layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from dictlearn.types import ModelInfo

Reads = Literal["mlp_in", "mlp_norm"]


def layer_or_middle(layer: int | None, info: ModelInfo) -> int:
    """`layer`, or by default the last layer of the first half of the model."""
    if layer is None:
        return (info.n_layers - 1) // 2
    if not 0 <= layer < info.n_layers:
        raise ValueError(f"dict.layer={layer}: {info.name} has layers 0 to {info.n_layers - 1}")
    return layer


def layers_or_all(layers: Sequence[int] | None, info: ModelInfo) -> tuple[int, ...]:
    """`layers`, which must ascend, or by default all layers of the model."""
    if layers is None:
        return tuple(range(info.n_layers))
    numbers = tuple(layers)
    inside = all(0 <= layer < info.n_layers for layer in numbers)
    if not numbers or not inside or list(numbers) != sorted(set(numbers)):
        raise ValueError(
            f"dict.layers={list(numbers)}: want ascending layers of {info.name}, "
            f"from 0 to {info.n_layers - 1}"
        )
    return numbers


def mlp_sites(
    layers: Sequence[int] | None, info: ModelInfo, reads: Reads
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The inputs, after or before the norm's gain, and the outputs of the MLPs of these layers."""
    numbers = layers_or_all(layers, info)
    return tuple(f"{reads}.{n}" for n in numbers), tuple(f"mlp_out.{n}" for n in numbers)


def site_at(site: str, layer: int | None, info: ModelInfo) -> str:
    """`resid_post` and a layer become `resid_post.3`; a full name or module path stays as it is."""
    if "." in site:
        return site
    return f"{site}.{layer_or_middle(layer, info)}"
