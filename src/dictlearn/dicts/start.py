"""Start training from another dictionary (fine-tuning)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import recentred, renormed
from dictlearn.sparsity.protocol import threshold_for
from dictlearn.words import a

ROWS = 1024  # tokens whose pre-activations are in memory at once


def check_start(dictionary: Dictionary, start: Dictionary, key: str) -> None:
    """Raises ValueError, in one sentence, if training `dictionary` can't start from `start`.

    `key` is the key and value that named `start`.
    """
    ours, theirs = dictionary.shape, start.shape
    plain, other = ours.to_json(), theirs.to_json()
    for name in ("width", "sources", "targets", *ours.link.to_json()):
        if plain[name] != other.get(name):
            raise ValueError(
                f"{key}: {a(theirs.kind)} with {name} {_shown(other.get(name))}, and dict= makes "
                f"{a(ours.kind)} with {name} {_shown(plain[name])}; want the same"
            )
    if ours.n_features != theirs.n_features:
        raise ValueError(
            f"{key}: has {theirs.n_features} features per source, and dict= makes "
            f"{ours.n_features}; want dict.n_features={theirs.n_features}"
        )
    if theirs.skip and not ours.skip:
        raise ValueError(f"{key}: has a linear path as well as features; want dict.skip=true")
    sparsity = dictionary.sparsity
    if not sparsity.starts_from(start.sparsity):
        raise ValueError(
            f"{key}: its sparsity is {start.sparsity.name}, whose parameters this run's "
            f"{sparsity.name} cannot take over; want {start.sparsity.name} in both"
        )
    if ours.centre != theirs.centre:
        try:
            start.sparsity.shifted(torch.zeros_like(start.encoder.b_enc))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from None
    if ours.unit_norm:
        try:
            renormed(start)
        except ValueError as error:
            raise ValueError(f"{key}: {error}; want unit_norm=false") from None


@torch.no_grad()
def start_from(dictionary: Dictionary, start: Dictionary, x_NSD: Tensor) -> None:
    """Copies the parameters of `start` to `dictionary`; both are in training units.

    With equal sparsities the function is the same; a ReLU is a JumpReLU of thresholds 0. If another
    sparsity becomes a JumpReLU, its thresholds let k features fire per token of `x_NSD`.
    """
    start = recentred(start, dictionary.shape.centre)
    if dictionary.shape.unit_norm:
        start = renormed(start)
    state = dictionary.state_dict()
    for name, tensor in start.state_dict().items():
        if not name.startswith("sparsity."):
            state[name].copy_(tensor)
    b_enc = dictionary.encoder.b_enc
    dictionary.sparsity.start_from(start.sparsity, b_enc, lambda: _thresholds(dictionary, x_NSD))


def _thresholds(dictionary: Dictionary, x_NSD: Tensor) -> Tensor:
    """Thresholds [S, F], equal for all features of a source, for k of them per token of `x_NSD`."""
    encoder = dictionary.encoder

    def rows_of(source: int) -> Iterator[Tensor]:
        for x in x_NSD.split(ROWS):
            yield encoder.pre(dictionary.read(x))[source :: encoder.n_sources]

    thresholds = [
        threshold_for(lambda s=s: rows_of(s), dictionary.shape.k) for s in range(encoder.n_sources)
    ]
    return torch.tensor(thresholds).to(encoder.b_enc)[:, None].expand_as(encoder.b_enc)


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
