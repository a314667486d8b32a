"""What a graph explains: logits at the last position, differences of them, a feature, a direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.attribution.places import entry, value
from dictlearn.attribution.sources import Sources
from dictlearn.attribution.sweep import Targets
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.linear import LinearModel


@dataclass(frozen=True)
class Difference:
    """The logit of one token less that of another: token ids, or texts of one token each."""

    token: int | str
    other: int | str


@dataclass(frozen=True)
class FeatureTarget:
    """A feature's pre-activation, before its bias, at a position (negative: from the end)."""

    layer: int
    index: int
    position: int = -1


@dataclass(frozen=True, eq=False)
class Direction:
    """The inner product of a vector [D] with a site (resid_pre, resid_mid or mlp_in) of a layer."""

    vector: Tensor = field(repr=False)
    layer: int
    site: str = "resid_pre"
    position: int = -1
    name: str = "direction"


Target = int | str | Difference | FeatureTarget | Direction


class Named(NamedTuple):
    """A target's name, the share of influence that starts at it, and its token if it is a logit."""

    name: str
    weight: float
    token: int | None


class Explained(NamedTuple):
    """Targets with what they should sum to: the part of their value that isn't from norms' biases."""

    names: list[Named]
    targets: Targets
    wanted: Tensor  # n


def top_logits(
    lm: LanguageModel, model: LinearModel, most: int, probability: float
) -> list[Target]:
    """The fewest likeliest tokens with this probability together, at most `most` of them."""
    p_V, tokens_V = model.logits.softmax(-1).topk(min(most, len(model.logits)))
    enough = int(torch.searchsorted(p_V.cumsum(0), probability)) + 1
    return list(tokens_V[:enough].tolist())


def explained(
    lm: LanguageModel, model: LinearModel, sources: Sources, targets: Sequence[Target]
) -> Explained:
    """The vectors that the targets read the stream with. Raises ValueError for one that isn't there."""
    if not targets:
        raise ValueError("targets: want at least one, or null for the likeliest tokens")
    mean_D = model.unembedding.to(model.dtype).mean(0)
    rows = [_row(lm, model, sources, target, mean_D) for target in targets]
    device = model.embedded.device
    stacked = Targets(
        torch.tensor([row.level for row in rows], device=device),
        torch.tensor([row.position for row in rows], device=device),
        torch.stack([row.vector for row in rows]),
    )
    return Explained([row.name for row in rows], stacked, torch.stack([row.wanted for row in rows]))


class _Row(NamedTuple):
    name: Named
    level: int
    position: int
    vector: Tensor
    wanted: Tensor


def _row(
    lm: LanguageModel, model: LinearModel, sources: Sources, target: Target, mean_D: Tensor
) -> _Row:
    if isinstance(target, FeatureTarget):
        return _feature(model, sources, target)
    if isinstance(target, Direction):
        return _direction(model, target)
    p_V = model.logits.softmax(-1)
    if isinstance(target, Difference):
        a, b = _token(lm, target.token), _token(lm, target.other)
        u_D = (model.unembedding[a] - model.unembedding[b]).to(model.dtype)
        name = Named(f"{text_of(lm, a)} - {text_of(lm, b)}", 1.0, None)
        wanted = model.uncapped[a] - model.uncapped[b]
    else:
        token = _token(lm, target)
        u_D = model.unembedding[token].to(model.dtype) - mean_D
        name = Named(text_of(lm, token), float(p_V[token]), token)
        wanted = model.uncapped[token] - model.uncapped.mean()
    last, vector = len(model.tokens) - 1, u_D
    if model.final is not None:
        wanted = wanted - u_D @ model.final.bias
        vector = model.final.back(u_D) * model.final.inverse[last]
    return _Row(name, 2 * len(model.blocks), last, vector, wanted)


def _feature(model: LinearModel, sources: Sources, target: FeatureTarget) -> _Row:
    owner = sources.places.source.get(target.layer)
    if owner is None:
        raise ValueError(f"{target}: no dictionary reads layer {target.layer}")
    n = owner.dictionary.n_features
    if not 0 <= target.index < n:
        raise ValueError(f"{target}: its layer has features 0 to {n - 1}")
    e_D = encoder_rows(sources, target.layer, torch.tensor([target.index]))[0]
    kind = sources.places.kind[target.layer]
    name = f"feature {target.index} of layer {target.layer}"
    return _at_site(model, Direction(e_D, target.layer, kind, target.position, name))


def _direction(model: LinearModel, target: Direction) -> _Row:
    if target.vector.shape != (model.width,):
        raise ValueError(
            f"{target.name}: has shape {list(target.vector.shape)}; want a vector of the model's "
            f"width, {model.width}"
        )
    if target.site not in ("resid_pre", "resid_mid", "mlp_in"):
        raise ValueError(f"site={target.site}: want resid_pre, resid_mid or mlp_in")
    return _at_site(model, target)


def _at_site(model: LinearModel, target: Direction) -> _Row:
    P, L = len(model.tokens), len(model.blocks)
    if not 0 <= target.layer < L:
        raise ValueError(f"{target.name}: the model has layers 0 to {L - 1}, not {target.layer}")
    if not -P <= target.position < P:
        raise ValueError(f"{target.name}: the prompt has {P} tokens, so no {target.position}")
    position = target.position % P
    found = entry(model, target.layer, target.site)
    e_D = target.vector.to(model.embedded)
    wanted = value(model, target.layer, target.site)[position] @ e_D
    vector = found.back(e_D)
    if found.norm is not None:
        wanted = wanted - e_D @ found.norm.bias
        vector = vector * found.norm.inverse[position]
    level = 2 * target.layer + found.after_attention
    where = f"{target.name} at {position}"
    return _Row(Named(where, 1.0, None), level, position, vector, wanted)


def encoder_rows(sources: Sources, layer: int, index: Tensor) -> Tensor:
    """The rows of W_enc of these features of a layer: [n, D]."""
    owner = sources.places.source[layer]
    W_FD = owner.dictionary.encoder.W_enc[owner.number]
    return W_FD[index.to(W_FD.device)].detach().to(sources.model.dtype)


def of_features(sources: Sources, chosen: Tensor) -> tuple[Targets, Tensor]:
    """The active features `chosen` as targets, and what their rows should sum to."""
    model, features = sources.model, sources.features
    level, wanted = torch.zeros_like(chosen), model.embedded.new_zeros(len(chosen))
    vector = model.embedded.new_zeros(len(chosen), model.width)
    position = features.position[chosen]
    for layer in features.layer[chosen].unique().tolist():
        at = (features.layer[chosen] == layer).nonzero()[:, 0]
        through = entry(model, layer, sources.places.kind[layer])
        e_ND = encoder_rows(sources, layer, features.index[chosen[at]])
        p = position[at]
        level[at] = 2 * layer + through.after_attention
        wanted[at] = (sources.inputs[layer][p] * e_ND).sum(-1)
        vector[at] = through.back(e_ND)
        if through.norm is not None:
            wanted[at] -= e_ND @ through.norm.bias
            vector[at] *= through.norm.inverse[p, None]
    return Targets(level, position, vector), wanted


def _token(lm: LanguageModel, target: int | str) -> int:
    V = lm.info.vocab_size
    if isinstance(target, int) and not isinstance(target, bool):
        if not 0 <= target < V:
            raise ValueError(f"targets: token {target}: the model has tokens 0 to {V - 1}")
        return target
    if not isinstance(target, str):
        raise ValueError(f"targets: {target!r}: want a token's id or text, or a target object")
    if lm.tokenizer is None:
        raise ValueError(f"targets: {target!r}: the model has no tokenizer; want token ids")
    ids = lm.tokenizer(target, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise ValueError(f"targets: {target!r} is {len(ids)} tokens; want a text of one token")
    return int(ids[0])


def text_of(lm: LanguageModel, *tokens: int) -> str:
    """The text of tokens; of a model without a tokenizer their ids."""
    if lm.tokenizer is None:
        return " ".join(map(str, tokens))
    return str(lm.tokenizer.decode(list(tokens)))
