"""Training that starts from a dictionary which is there already: fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import recentred, renormed
from dictlearn.sparsity.gated import Gated
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.sparsity.protocol import threshold_for
from dictlearn.sparsity.relu import ReLU

ROWS = 1024  # tokens whose pre-activations exist at once
SMALLEST = 1e-6  # threshold that has a logarithm


def check_start(dictionary: Dictionary, start: Dictionary, key: str) -> None:
    """Raises ValueError, in one sentence, where training `dictionary` can't start from `start`.

    `key` is what the user wrote to name `start`.
    """
    ours, theirs = dictionary.shape, start.shape
    plain, other = ours.to_json(), theirs.to_json()
    for name in ("width", "sources", "targets", *ours.link.to_json()):
        want, found = plain[name], other.get(name)
        if want != found:
            raise ValueError(
                f"{key}: a {theirs.kind} with {name} {_shown(found)}, and dict= makes a "
                f"{ours.kind} with {name} {_shown(want)}; want the same"
            )
    if ours.n_features != theirs.n_features:
        raise ValueError(
            f"{key}: has {theirs.n_features} features per source, and dict= makes "
            f"{ours.n_features}; want dict.n_features={theirs.n_features}"
        )
    if theirs.skip and not ours.skip:
        raise ValueError(f"{key}: has a linear path as well as features; want dict.skip=true")
    if isinstance(dictionary.sparsity, Gated) != isinstance(start.sparsity, Gated):
        raise ValueError(
            f"{key}: its sparsity is {start.sparsity.name}, and this run's "
            f"{dictionary.sparsity.name}: a gate has no place in the other; want gated in both, or "
            f"in neither"
        )
    if ours.unit_norm:
        try:
            renormed(start)
        except ValueError as error:
            raise ValueError(f"{key}: {error}; want unit_norm=false") from None


@torch.no_grad()
def start_from(dictionary: Dictionary, start: Dictionary, x_NSD: Tensor) -> None:
    """Gives `dictionary` the parameters of `start`, both in the units that it trains in.

    The same function where the sparsities are the same; a ReLU is a JumpReLU of thresholds 0. From
    another to JumpReLU the thresholds start where k features fire per token of `x_NSD`.
    """
    start = recentred(start, dictionary.shape.centre)
    if dictionary.shape.unit_norm:
        start = renormed(start)
    own = dictionary.state_dict()
    for name, tensor in start.state_dict().items():
        if not name.startswith("sparsity."):
            own[name].copy_(tensor)
    sparsity, theirs = dictionary.sparsity, start.sparsity
    if isinstance(sparsity, JumpReLU):
        threshold_SF = _thresholds(dictionary, start, x_NSD)
        log = sparsity.log_threshold
        sparsity.raw_threshold_SF.copy_(
            threshold_SF.clamp_min(SMALLEST).log() if log else threshold_SF
        )
    elif isinstance(sparsity, Gated):
        assert isinstance(theirs, Gated)
        sparsity.load_state_dict(theirs.state_dict())


def _thresholds(dictionary: Dictionary, start: Dictionary, x_NSD: Tensor) -> Tensor:
    """[S, F], for JumpReLU."""
    encoder = dictionary.encoder
    if isinstance(start.sparsity, JumpReLU):
        return start.sparsity.threshold_SF
    if isinstance(start.sparsity, ReLU):
        return torch.zeros_like(encoder.b_enc)

    def rows_of(source: int) -> Iterator[Tensor]:
        for x in x_NSD.split(ROWS):
            yield encoder.pre(dictionary.read(x))[source :: encoder.n_sources]

    each = [
        threshold_for(lambda s=s: rows_of(s), dictionary.shape.k) for s in range(encoder.n_sources)
    ]
    return torch.tensor(each).to(encoder.b_enc)[:, None].expand_as(encoder.b_enc)


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
