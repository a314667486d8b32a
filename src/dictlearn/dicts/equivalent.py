"""The same function with other parameters: what another format, or another run, wants them to be."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch

from dictlearn.dicts.description import from_json
from dictlearn.dicts.dictionary import Dictionary


@torch.no_grad()
def parts(dictionary: Dictionary) -> list[Dictionary]:
    """A dictionary of one source and one target for every source, where each writes to its own target."""
    assert layered(dictionary)
    described = dictionary.to_json()
    own = {key: described[key] for key in described if key not in dictionary.shape.link.to_json()}
    tensors = {
        name: tensor
        for name, tensor in dictionary.state_dict().items()
        if not name.startswith("decoder.")
    }
    found = []
    for s, (source, target) in enumerate(zip(dictionary.sources, dictionary.targets, strict=True)):
        kind = "sae" if source == target else "transcoder"
        one = from_json(own | {"kind": kind, "sources": [source], "targets": [target]})
        one = one.to(dictionary.encoder.W_enc)
        decoder = {
            "decoder.W_dec": dictionary.decoder.written(s, s, slice(None))[None],
            "decoder.b_dec": dictionary.decoder.b_dec[s : s + 1],
        }
        one.load_state_dict({name: t[s : s + 1] for name, t in tensors.items()} | decoder)
        found.append(one.eval().requires_grad_(False))
    return found


def layered(dictionary: Dictionary) -> bool:
    """Whether each source has features of its own, which write fixed directions to its own target."""
    pairs = dictionary.code_sources == dictionary.n_sources == dictionary.n_targets
    own = pairs and all(dictionary.reads(t) == range(t, t + 1) for t in range(dictionary.n_targets))
    return own and dictionary.decoder.writes_directions


@torch.no_grad()
def together(layers: Sequence[Dictionary], kind: str) -> Dictionary:
    """The inverse of `parts`: layers of equal shape and sparsity as one dictionary."""
    described = layers[0].to_json() | {
        "kind": kind,
        "sources": [source for layer in layers for source in layer.sources],
        "targets": [target for layer in layers for target in layer.targets],
    }
    whole = from_json(described).to(layers[0].encoder.W_enc)
    states = [layer.state_dict() for layer in layers]
    whole.load_state_dict(
        {name: torch.cat([state[name] for state in states]) for name in states[0]}
    )
    return whole.eval().requires_grad_(False)


@torch.no_grad()
def recentred(dictionary: Dictionary, centre: bool) -> Dictionary:
    """A copy that subtracts b_dec from its input, or doesn't: the encoder's biases take it over.

    Raises ValueError where the sparsity doesn't say what becomes of it.
    """
    if dictionary.shape.centre == centre:
        return dictionary
    moved = copy.deepcopy(dictionary)
    moved.shape = replace(moved.shape, centre=centre)
    b_SD = moved.decoder.b_dec.double().reshape(moved.code_sources, -1)
    shift_SF = torch.einsum("sfd,sd->sf", moved.encoder.W_enc.double(), b_SD)
    shift_SF = (shift_SF if centre else -shift_SF).to(moved.encoder.b_enc.dtype)
    moved.encoder.b_enc.add_(shift_SF)
    moved.sparsity = moved.sparsity.shifted(shift_SF)
    return moved


@torch.no_grad()
def renormed(dictionary: Dictionary) -> Dictionary:
    """A copy whose features have decoder norm 1, their activations being that much larger.

    Raises ValueError where the sparsity compares features of a source, whose norms are not equal:
    other ones would then be the largest.
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
