"""A language model at one prompt as a linear map, with attention patterns and norm scales held.

Held at the values of one forward pass, everything but the MLPs is linear in the residual stream:

    norm(x)[p]   = gain * (x[p] - mean) / scale[p] + bias
    attention(x) = sum over heads h of A_h x W_v,h^T W_o,h^T + a constant

The gains of the norms around attention are folded into W_v and W_o, their scales into the patterns.
Attribution graphs are defined on this map (Ameisen et al. 2025, "Circuit Tracing").

How a family's block is wired is seen in the pass itself: which norm's output attention reads, which
norm reads attention's output, and whether the MLP reads the stream before or after attention. What
has been found is then computed again and compared with what the model computed; a model for which
they differ is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dictlearn.lm.attention import value_output
from dictlearn.lm.frozen import EPSILONS, Frozen, residual_norms
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.readout import has_head
from dictlearn.lm.sites import ATTENTION, MLP, blocks, resolve

TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}  # relative; others: half precision
HALF_PRECISION = 5e-2


@dataclass(frozen=True, eq=False)
class Norm:
    """y[p] = gain * (x[p] - mean of x[p] if centred) / scale[p] + bias, with the scale held."""

    gain: Tensor  # D
    bias: Tensor  # D
    centred: bool
    inverse: Tensor  # 1 / scale, P

    def __call__(self, x_PD: Tensor) -> Tensor:
        x_PD = x_PD - x_PD.mean(-1, keepdim=True) if self.centred else x_PD
        return self.gain * x_PD * self.inverse[:, None] + self.bias

    def back(self, r: Tensor) -> Tensor:
        """The adjoint without the scale: vectors [..., D] that read y, as vectors that read x."""
        r = r * self.gain
        return r - r.mean(-1, keepdim=True) if self.centred else r


@dataclass(frozen=True, eq=False)
class Attention:
    """attention(x)[p] = sum_h sum_q pattern[h, q, p] W_o,h W_v,kv(h) x[q] + constant[p].

    Norms before and after are part of it. Heads h of one group kv share W_v.
    """

    W_v: Tensor  # [KV * dh, D]
    W_o: Tensor  # [D, H * dh]
    pattern: Tensor  # [H, Q keys, P queries], times the held scales of the norms around
    constant: Tensor  # PD, of biases

    @property
    def heads(self) -> int:
        return len(self.pattern)

    @property
    def head_width(self) -> int:
        return self.W_o.shape[1] // self.heads

    @property
    def groups(self) -> int:
        return len(self.W_v) // self.head_width

    def __call__(self, x_PD: Tensor) -> Tensor:
        """What attention adds to the stream for x, without the constant."""
        v = (x_PD @ self.W_v.T).unflatten(1, (self.groups, 1, self.head_width))
        v = v.expand(-1, -1, self.heads // self.groups, -1).flatten(1, 2)  # Q, H, dh
        z = torch.einsum("hqp,qhe->phe", self.pattern, v)
        return z.flatten(1) @ self.W_o.T


@dataclass(frozen=True, eq=False)
class Block:
    """One block, its MLP cut: what the MLP read and wrote are values."""

    attention: Attention
    norm: Norm | None  # between the stream and the MLP
    parallel: bool  # the MLP reads resid_pre, not resid_mid
    resid_pre: Tensor  # PD
    resid_mid: Tensor  # PD
    mlp_in: Tensor  # PD
    mlp_out: Tensor  # PD


@dataclass(frozen=True, eq=False)
class LinearModel:
    """A model at one prompt of P tokens, in `dtype`."""

    tokens: Tensor  # int64 P
    blocks: list[Block]
    final: Norm | None
    embedded: Tensor  # PD, what the tokens write to resid_pre.0
    positions: Tensor | None  # PD, what learned position embeddings write there
    unembedding: Tensor  # VD, in the model's dtype
    logits: Tensor  # V, at the last position
    uncapped: Tensor  # V, the same before a soft cap and without the head's bias

    @property
    def width(self) -> int:
        return self.embedded.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        return self.embedded.dtype


class _Call(NamedTuple):
    read: Tensor
    wrote: Any


@torch.no_grad()
def linearise(lm: LanguageModel, tokens_P: Tensor, dtype: torch.dtype | None = None) -> LinearModel:
    """The linear map of a prompt; one forward pass with the family's eager attention.

    `dtype`: that of the map, by default the model's, or float32 for a model in half precision.

    Raises:
        ValueError: the model has no head, or a block that isn't linear with patterns and scales held.
    """
    if not has_head(lm):
        raise ValueError(
            f"{lm.info.name}: {lm.info.family} has no next-token head; attribution graphs want a "
            "causal language model"
        )
    dtype = dtype or torch.promote_types(lm.model.dtype, torch.float32)
    calls, frozen, out = _recorded(lm, tokens_P)
    check = _Check(lm, dtype)
    linear = [
        _block(lm, check, calls, frozen, layer, dtype) for layer in range(len(blocks(lm.model)[1]))
    ]
    embedded, positions = _embedded(lm, check, calls, linear[0].resid_pre, dtype)
    last = linear[-1].resid_mid + linear[-1].mlp_out
    ending = [norm for norm in lm.trunk.children() if norm in residual_norms(lm)][-1:]
    final = _norm(check, ending[0], calls[ending[0]], dtype) if ending else None
    state = last if final is None else final(last)
    head: Any = lm.model.get_output_embeddings()
    logits = out.logits[0, -1].to(dtype)
    plain = state[-1] @ head.weight.to(dtype).T
    cap = lm.model.config.get_text_config().to_dict().get("final_logit_softcapping")
    bias = getattr(head, "bias", None)
    shifted = plain if bias is None else plain + bias.to(dtype)
    check("the logits", shifted if not cap else cap * torch.tanh(shifted / cap), logits)
    return LinearModel(
        tokens_P, linear, final, embedded, positions, head.weight.detach(), logits, plain
    )


class _Check:
    """Refuses a model by name where what was found differs from what the model computed."""

    def __init__(self, lm: LanguageModel, dtype: torch.dtype) -> None:
        self.name, self.family = lm.info.name, lm.info.family
        self.tolerance = TOLERANCE.get(lm.model.dtype, HALF_PRECISION)

    def __call__(self, what: str, ours: Tensor, theirs: Tensor) -> None:
        if not self.agree(ours, theirs):
            self.refuse(what)

    def agree(self, ours: Tensor, theirs: Tensor) -> bool:
        return bool((ours - theirs).norm() <= self.tolerance * theirs.norm())

    def refuse(self, what: str) -> None:
        raise ValueError(
            f"{self.name}: {what} of {self.family} is not what a decoder of pre- or post-norm blocks "
            "computes with patterns and scales held, so its attribution graph would be wrong"
        )


def _recorded(lm: LanguageModel, tokens_P: Tensor) -> tuple[dict[nn.Module, _Call], Frozen, Any]:
    """What modules read and wrote in one pass over the prompt, with its attention patterns."""
    _, layers = blocks(lm.model)
    calls: dict[nn.Module, _Call] = {}

    def record(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        read = args[0] if args else kwargs.get("hidden_states")
        calls[module] = _Call(read, output[0] if isinstance(output, tuple) else output)

    watched = {*residual_norms(lm), *layers, *(m for m in lm.trunk.modules() if _embeds(m))}
    for layer, block in enumerate(layers):
        watched |= {_child(block, ATTENTION, lm), _child(block, MLP, lm)}
        watched |= {_module(lm, f"{kind}.{layer}") for kind in ("attn_out", "mlp_out")}
    handles = [module.register_forward_hook(record, with_kwargs=True) for module in watched]
    frozen = Frozen(lm)
    try:
        with frozen.attached(), torch.autocast(lm.device.type, enabled=False):
            out = lm.model(**lm.inputs(tokens_P[None]))
    finally:
        for handle in handles:
            handle.remove()
    without = [i for i, block in enumerate(layers) if not frozen.has(_child(block, ATTENTION, lm))]
    if without:
        raise ValueError(
            f"{lm.info.name}: block {without[0]} of {lm.info.family} has no attention pattern that "
            "can be held, so it is not linear; want a model whose blocks all have attention"
        )
    return calls, frozen, out


def _block(
    lm: LanguageModel,
    check: _Check,
    calls: dict[nn.Module, _Call],
    frozen: Frozen,
    layer: int,
    dtype: torch.dtype,
) -> Block:
    block = blocks(lm.model)[1][layer]
    attention, mlp = _child(block, ATTENTION, lm), _child(block, MLP, lm)
    norms = {norm: calls[norm] for norm in residual_norms(lm) if norm in calls}
    before = next((n for n, c in norms.items() if c.wrote is calls[attention].read), None)
    after = next((n for n, c in norms.items() if c.read is calls[attention].wrote), None)
    entry = next((n for n, c in norms.items() if c.wrote is calls[mlp].read), None)
    stream = calls[mlp].read if entry is None else calls[entry].read
    parallel = stream is calls[block].read
    attn_out = calls[_module(lm, f"attn_out.{layer}")].wrote[0].to(dtype)
    mlp_out = calls[_module(lm, f"mlp_out.{layer}")].wrote[0].to(dtype)
    resid_pre = calls[block].read[0].to(dtype)
    resid_mid = resid_pre + attn_out
    where = f"block {layer}"
    check(f"{where}: the MLP's input", resid_pre if parallel else resid_mid, stream[0].to(dtype))
    check(f"{where}: the sum", resid_mid + mlp_out, calls[block].wrote[0].to(dtype))
    found = _attention(
        attention,
        frozen.pattern(attention)[0].to(dtype),
        None if before is None else _norm(check, before, calls[before], dtype),
        None if after is None else _norm(check, after, calls[after], dtype),
        check,
        where,
    )
    check(f"{where}: attention", found(resid_pre) + found.constant, attn_out)
    norm = None if entry is None else _norm(check, entry, calls[entry], dtype)
    mlp_in = calls[mlp].read[0].to(dtype)
    return Block(found, norm, parallel, resid_pre, resid_mid, mlp_in, mlp_out)


def _attention(
    module: nn.Module,
    pattern_HPQ: Tensor,
    before: Norm | None,
    after: Norm | None,
    check: _Check,
    where: str,
) -> Attention:
    """Folds the norms: gains into the weights, scales into the pattern, biases into a constant."""
    found = value_output(module, len(pattern_HPQ))
    if found is None:
        check.refuse(f"{where}: {type(module).__name__}")
        raise AssertionError
    dtype = pattern_HPQ.dtype
    W_v, b_v, W_o, b_o = (t.to(dtype) for t in found)
    heads, width = len(pattern_HPQ), W_o.shape[1] // len(pattern_HPQ)
    sums_HP = pattern_HPQ.sum(-1)
    if before is not None:
        b_v = b_v + W_v @ before.bias
        W_v = before.back(W_v)
        pattern_HPQ = pattern_HPQ * before.inverse
    if after is not None:
        W_o, b_o = after.back(W_o.T).T.contiguous(), after.back(b_o)
        pattern_HPQ = pattern_HPQ * after.inverse[:, None]
        sums_HP = sums_HP * after.inverse
    shared = b_v.view(-1, 1, width).expand(-1, heads * width // len(b_v), -1).reshape(heads, width)
    biased_PD = torch.einsum("hp,he->phe", sums_HP, shared).flatten(1) @ W_o.T
    constant = biased_PD + b_o
    if after is not None:
        constant = biased_PD + b_o * after.inverse[:, None] + after.bias
    return Attention(W_v, W_o, pattern_HPQ.transpose(1, 2).contiguous(), constant)


def _norm(check: _Check, module: nn.Module, call: _Call, dtype: torch.dtype) -> Norm:
    """The norm with its scale at this prompt: of the forms that families have, the one that fits."""
    x_PD, y_PD = call.read[0].to(dtype), call.wrote[0].to(dtype)
    weight, bias = (getattr(module, key, None) for key in ("weight", "bias"))
    epsilons = [getattr(module, name) for name in EPSILONS if hasattr(module, name)]
    zero_D, one_D = torch.zeros_like(x_PD[0]), torch.ones_like(x_PD[0])
    bias_D = zero_D if bias is None else bias.to(dtype)
    gains = [one_D] if weight is None else [weight.to(dtype), 1 + weight.to(dtype)]
    forms = []
    for centred in (False, True):
        z_PD = x_PD - x_PD.mean(-1, keepdim=True) if centred else x_PD
        for epsilon in epsilons or (0.0, 1e-5, 1e-6):
            inverse_P = torch.rsqrt(z_PD.square().mean(-1) + epsilon)
            forms += [Norm(gain_D, bias_D, centred, inverse_P) for gain_D in gains]
    best = min(forms, key=lambda norm: float((norm(x_PD) - y_PD).norm()))
    check(type(module).__name__, best(x_PD), y_PD)
    return best


def _embedded(
    lm: LanguageModel,
    check: _Check,
    calls: dict[nn.Module, _Call],
    resid_PD: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None]:
    """What tokens, and what learned positions, write to the stream."""
    words = lm.model.get_input_embeddings()
    others: Iterable[Tensor] = (
        call.wrote.reshape(-1, call.wrote.shape[-1]).to(dtype)
        for module, call in calls.items()
        if module is not words and _embeds(module) and call.wrote.shape[-2:] == resid_PD.shape
    )
    positions = next(iter(others), None)
    embedded_PD = resid_PD if positions is None else resid_PD - positions
    words_PD = calls[words].wrote[0].to(dtype)  # some families scale it
    factor = (words_PD * embedded_PD).sum() / words_PD.square().sum()
    check("the embedding", factor * words_PD, embedded_PD)
    return embedded_PD, positions


def _embeds(module: nn.Module) -> bool:
    return isinstance(module, nn.Embedding)


def _child(block: nn.Module, names: Iterable[str], lm: LanguageModel) -> nn.Module:
    children = dict(block.named_children())
    found = next((children[name] for name in names if name in children), None)
    if found is None:
        raise ValueError(
            f"{lm.info.name}: found no {' or '.join(names)} among the parts of a block "
            f"({', '.join(children)})"
        )
    return found


def _module(lm: LanguageModel, site: str) -> nn.Module:
    return lm.model.get_submodule(resolve(lm.model, site, lm.info).module_path)
