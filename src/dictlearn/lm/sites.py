"""Names of the tensors in a model that can be read and replaced.

    resid_pre.L    the input of block L
    attn_out.L     what its attention adds to the residual
    resid_mid.L    resid_pre.L + attn_out.L
    mlp_in.L       the input of its MLP (after the norm, if there is one before the MLP)
    mlp_out.L      what its MLP adds to the residual (after the norm, if there is one there)
    resid_post.L   the output of block L: resid_mid.L + mlp_out.L

These sums hold for every decoder family, with two exceptions. In parallel blocks (gpt_neox) the MLP
reads resid_pre.L, and no module reads resid_mid.L. If a norm follows each sum (bert), resid_mid.L is
the normed sum, which the MLP reads.

One more site can be read but not replaced, if the MLP reads a norm's output:

    mlp_norm.L     the output of that norm before its gain and bias; mlp_in.L is after them

A module's input or output is a site too: `model.layers.3.mlp:input`, `transformer.h.0.ln_2:output`.

`<site>:standardised` is a site with each token centred and divided by its standard deviation. A
replacement is multiplied by that deviation again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Literal

from torch import nn
from transformers import PreTrainedModel

from dictlearn.types import ModelInfo
from dictlearn.words import a

SITES = ("resid_pre", "attn_out", "resid_mid", "mlp_in", "mlp_out", "resid_post")

NORMED = "mlp_norm"
STANDARDISED = ":standardised"

End = Literal["input", "output", "normed"]

ATTENTION = ("self_attn", "attention", "attn", "self_attention", "linear_attn")

MLP = ("mlp", "feed_forward", "block_sparse_moe", "ffn", "intermediate")

# An encoder has no MLP module: `intermediate` is its input, and this its output. The output of its
# attention module is the sum with the residual (in bert, normed).
DENSE = "output.dense"

# Norms of the output of a module before it is added to the residual: (of attention, of the MLP).
# A block must have the second: without it, `post_attention_layernorm` is llama's norm before the MLP.
NORMS_AFTER = (
    ("post_attention_layernorm", "post_feedforward_layernorm"),  # gemma2, gemma3, olmo2
    ("post_self_attn_layernorm", "post_mlp_layernorm"),  # glm4
)

# Names of the norm before the MLP; the first that a block has is meant. In parallel blocks (phi, gptj)
# attention reads the same norm.
NORMS_BEFORE = (
    *("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2", "layernorm_after"),
    *("LayerNorm", "input_layernorm", "ln_1"),
)


@dataclass(frozen=True)
class Site:
    """A named tensor: a module's input or output, plus the value of the site `plus` if any.

    The end `normed` is a norm's output before its gain and bias. `standardised`: see above.
    """

    name: str
    module_path: str  # within the model with its head
    end: End
    plus: Site | None = None
    standardised: bool = False


def resolve(model: PreTrainedModel, name: str, info: ModelInfo) -> Site:
    """The site of this name. Raises ValueError if the model has none."""
    if name.endswith(STANDARDISED):
        inner = resolve(model, name.removesuffix(STANDARDISED), info)
        return replace(inner, name=name, standardised=True)
    path, colon, end = name.rpartition(":")
    if colon:
        return _explicit(model, name, path, end, info)
    kind, _, layer = name.partition(".")
    if kind not in (*SITES, NORMED) or not re.fullmatch("0|[1-9][0-9]*", layer):
        raise ValueError(_unknown(model, name, info))
    list_path, layers = blocks(model)
    if int(layer) >= len(layers):
        raise ValueError(
            f"site {name}: {info.name} has layers 0 to {len(layers) - 1}, so the last is "
            f"{kind}.{len(layers) - 1}"
        )
    return _in_block(name, kind, f"{list_path}.{int(layer)}", layers[int(layer)], info)


def site_names(model: PreTrainedModel) -> list[str]:
    """The named sites of this model, block by block, in the order in which they are computed."""
    _, layers = blocks(model)
    return [f"{kind}.{layer}" for layer in range(len(layers)) for kind in SITES]


def blocks(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The path of the list of residual blocks of the text model, and the list."""
    config = model.config.get_text_config()
    trunk = model.get_decoder()
    # modules() yields parents before children, so a list of experts never comes first.
    for module in trunk.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return next(path for path, m in model.named_modules() if m is module), module
    raise ValueError(
        f"no list of {config.num_hidden_layers} blocks was found in {type(model).__name__}; "
        f"name sites by module path, such as 'model.layers.3.mlp:input'"
    )


def _in_block(name: str, kind: str, path: str, block: nn.Module, info: ModelInfo) -> Site:
    if kind == "resid_pre":
        return Site(name, path, "input")
    if kind == "resid_post":
        return Site(name, path, "output")

    children = dict(block.named_children())
    attention = next((child for child in ATTENTION if child in children), None)
    mlp = next((child for child in MLP if child in children), None)
    if attention is None or mlp is None:
        raise ValueError(
            f"site {name}: found no attention and MLP among the parts of {a(type(block).__name__)} "
            f"({', '.join(children)}); name the site by its module path, such as "
            f"'{path}.{next(iter(children), 'mlp')}:output'"
        )
    if kind == "mlp_in":
        return Site(name, f"{path}.{mlp}", "input")
    if kind == NORMED:
        return Site(name, f"{path}.{_norm_before(name, block, children)}", "normed")
    last = DENSE if mlp == "intermediate" else mlp
    for after_attention, after_mlp in NORMS_AFTER:
        if after_mlp in children:
            attention, last = after_attention, after_mlp
    if kind == "mlp_out":
        return Site(name, f"{path}.{last}", "output")
    if last == DENSE:
        inner = f".{DENSE}" if kind == "attn_out" else ""
        return Site(name, f"{path}.{attention}{inner}", "output")
    plus = Site(name.replace(kind, "resid_pre"), path, "input") if kind == "resid_mid" else None
    return Site(name, f"{path}.{attention}", "output", plus)


def _norm_before(name: str, block: nn.Module, children: Mapping[str, nn.Module]) -> str:
    """The name of the norm before the MLP. Raises ValueError if there is none."""
    after = {norm for norms in NORMS_AFTER if norms[1] in children for norm in norms}
    before = [norm for norm in NORMS_BEFORE if norm in children and norm not in after]
    if not before:
        raise ValueError(
            f"site {name}: the MLP of {a(type(block).__name__)} reads no norm's output; want mlp_in"
        )
    return before[0]


def _explicit(model: PreTrainedModel, name: str, path: str, end: str, info: ModelInfo) -> Site:
    paths = [p for p, _ in model.named_modules() if p]
    if path not in paths:
        near = get_close_matches(path, paths, n=3)
        hint = f"; near it are {', '.join(near)}" if near else ""
        raise ValueError(f"site {name}: {info.name} has no module {path!r}{hint}")
    if end == "input" or end == "output":
        return Site(name, path, end)
    raise ValueError(f"site {name}: want '{path}:input' or '{path}:output', not ':{end}'")


def _unknown(model: PreTrainedModel, name: str, info: ModelInfo) -> str:
    names = site_names(model)
    near = get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    kinds = ", ".join(f"{kind}.L" for kind in SITES)
    return (
        f"site {name!r}: the sites of {info.name} are {kinds} with L from 0 to "
        f"{len(names) // len(SITES) - 1}, and module paths such as '{blocks(model)[0]}.0:output'"
        f"{hint}"
    )
