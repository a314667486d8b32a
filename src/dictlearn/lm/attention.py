"""The value and output matrices of an attention module, whatever its family calls and packs them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

OUTPUT = ("o_proj", "c_proj", "dense", "out_proj")  # llama; gpt2; gpt_neox and phi; gptj


class ValueOutput(NamedTuple):
    """v = W_v x + b_v, shared by the heads of a group; W_o and b_o map all heads to the stream."""

    W_v: Tensor  # [KV * dh, D]
    b_v: Tensor  # [KV * dh]
    W_o: Tensor  # [D, H * dh]
    b_o: Tensor  # D


def value_output(attention: nn.Module, heads: int) -> ValueOutput | None:
    """The matrices, or None if the module has none of the known forms. The caller checks them."""
    output: Any = next((getattr(attention, n) for n in OUTPUT if hasattr(attention, n)), None)
    if output is None:
        return None
    W_o, b_o = _affine(output)
    width = W_o.shape[1] // heads
    found: Any = attention
    if hasattr(attention, "v_proj"):
        W_v, b_v = _affine(found.v_proj)
    elif hasattr(attention, "qkv_proj"):  # phi3: rows of all queries, then keys, then values
        W, b = _affine(found.qkv_proj)
        n = (len(W) - heads * width) // 2
        W_v, b_v = W[-n:], b[-n:]
    elif hasattr(attention, "c_attn"):  # gpt2: the same, without groups
        W, b = _affine(found.c_attn)
        W_v, b_v = W[-heads * width :], b[-heads * width :]
    elif hasattr(
        attention, "query_key_value"
    ):  # gpt_neox: query, key, value of one head after another
        W, b = _affine(found.query_key_value)
        W_v = W.view(heads, 3, width, -1)[:, 2].reshape(heads * width, -1)
        b_v = b.view(heads, 3, width)[:, 2].reshape(-1)
    else:
        return None
    if W_v.ndim != 2 or len(W_v) % width or W_v.shape[1] != len(W_o):
        return None
    return ValueOutput(W_v, b_v, W_o, b_o)


def _affine(module: Any) -> tuple[Tensor, Tensor]:
    """Weight [out, in] and bias of a linear layer; Conv1D of gpt2 keeps its weight transposed."""
    weight = module.weight.detach()
    weight = weight.T.contiguous() if hasattr(module, "nf") else weight
    bias = getattr(module, "bias", None)
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach()
