"""Convert a dictionary to other parameters of the same function, for other formats and runs."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from dictlearn.dicts.description import from_json
from dictlearn.dicts.dictionary import Dictionary


@torch.no_grad()
def split_layers(dictionary: Dictionary) -> list[Dictionary]:
    """A dictionary of one source and one target for each layer of a `layered` dictionary."""
    assert layered(dictionary)
    described = dictionary.to_json()
    own = {key: described[key] for key in described if key not in dictionary.shape.link.to_json()}
    tensors = {
        name: tensor
        for name, tensor in dictionary.state_dict().items()
        if not name.startswith("decoder.")
    }
    layers = []
    for s, (source, target) in enumerate(zip(dictionary.sources, dictionary.targets, strict=True)):
        kind = "sae" if source == target else "transcoder"
        layer = from_json(own | {"kind": kind, "sources": [source], "targets": [target]})
        layer = layer.to(dictionary.encoder.W_enc)
        decoder = {
            "decoder.W_dec": dictionary.decoder.written(s, s, slice(None))[None],
            "decoder.b_dec": dictionary.decoder.b_dec[s : s + 1],
        }
        layer.load_state_dict({name: t[s : s + 1] for name, t in tensors.items()} | decoder)
        layers.append(layer.eval().requires_grad_(False))
    return layers


def layered(dictionary: Dictionary) -> bool:
    """Whether the features of each source are its own and write fixed vectors to its target only."""
    pairs = dictionary.code_sources == dictionary.n_sources == dictionary.n_targets
    own = pairs and all(dictionary.reads(t) == range(t, t + 1) for t in range(dictionary.n_targets))
    return own and dictionary.decoder.writes_directions


@torch.no_grad()
def join_layers(layers: Sequence[Dictionary], kind: str) -> Dictionary:
    """The inverse of `split_layers`, for layers of equal shape and sparsity."""
    described = layers[0].to_json() | {
        "kind": kind,
        "sources": [source for layer in layers for source in layer.sources],
        "targets": [target for layer in layers for target in layer.targets],
    }
    joined = from_json(described).to(layers[0].encoder.W_enc)
    states = [layer.state_dict() for layer in layers]
    joined.load_state_dict(
        {name: torch.cat([state[name] for state in states]) for name in states[0]}
    )
    return joined.eval().requires_grad_(False)


@torch.no_grad()
def recentred(dictionary: Dictionary, centre: bool) -> Dictionary:
    """A copy that subtracts b_dec from its input if `centre`; the encoder's biases compensate.

    Raises ValueError if the sparsity cannot be shifted.
    """
    if dictionary.shape.centre == centre:
        return dictionary
    result = copy.deepcopy(dictionary)
    result.shape = replace(result.shape, centre=centre)
    b_SD = result.decoder.b_dec.double().reshape(result.code_sources, -1)
    shift_SF = torch.einsum("sfd,sd->sf", result.encoder.W_enc.double(), b_SD)
    shift_SF = (shift_SF if centre else -shift_SF).to(result.encoder.b_enc.dtype)
    result.encoder.b_enc.add_(shift_SF)
    result.sparsity = result.sparsity.shifted(shift_SF)
    return result


@torch.no_grad()
def renormed(dictionary: Dictionary) -> Dictionary:
    """A copy whose features have decoder norm 1; their values are multiplied by the old norms.

    Raises ValueError if the sparsity compares features and their norms differ, as it would then
    select other features.
    """
    norms_SF = dictionary.decoder.norms()
    scaled = copy.deepcopy(dictionary)
    try:
        scaled.sparsity = scaled.sparsity.rescaled(norms_SF)
    except ValueError as error:
        raise ValueError(f"decoder norms cannot become 1: {error}") from None
    scaled.encoder.W_enc.mul_(norms_SF[..., None])
    scaled.encoder.b_enc.mul_(norms_SF)
    scaled.decoder.normalise()
    return scaled
