"""Tiny random models of the real architectures: no download, a few milliseconds a forward."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from dictlearn.lm.language_model import LanguageModel, freeze

VOCAB, WIDTH, LAYERS = 64, 16, 3

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 16}


@dataclass(frozen=True)
class Family:
    """How the modeling code of a family reads, written here a second time, by hand."""

    config: dict[str, Any]
    mlp_in: Callable[[Any, Tensor, Tensor], Tensor]  # (block, resid_pre, resid_mid)
    mlp_out: Callable[[Any, Tensor], Tensor]  # (block, mlp_in)
    resid_post: Callable[[Any, Tensor, Tensor], Tensor] = lambda block, mid, out: mid + out
    resid_mid: Callable[[Any, Tensor, Tensor], Tensor] = lambda block, pre, out: pre + out
    # (model, resid_post of the last block) -> the last of the model's own hidden states
    after: Callable[[Any, Tensor], Tensor] = lambda model, x: x


def _llama(**more: Any) -> Family:
    return Family(
        {**COMMON, **more},
        lambda block, pre, mid: block.post_attention_layernorm(mid),
        lambda block, x: block.mlp(x),
        after=lambda model, x: model.model.norm(x),
    )


def _sandwich(**more: Any) -> Family:
    return Family(
        {**COMMON, **more},
        lambda block, pre, mid: block.pre_feedforward_layernorm(mid),
        lambda block, x: block.post_feedforward_layernorm(block.mlp(x)),
        after=lambda model, x: model.model.norm(x),
    )


def _neox(parallel: bool) -> Family:
    return Family(
        {**COMMON, "use_parallel_residual": parallel},
        lambda block, pre, mid: block.post_attention_layernorm(pre if parallel else mid),
        lambda block, x: block.mlp(x),
        after=lambda model, x: model.gpt_neox.final_layer_norm(x),
    )


MOE = {"num_experts_per_tok": 2, "num_local_experts": 4}
DECODERS = {
    "qwen3": _llama(),
    "qwen3_moe": _llama(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8),
    "gpt_oss": Family(
        {**COMMON, **MOE, "rope_parameters": YARN, "sliding_window": 4},
        lambda block, pre, mid: block.post_attention_layernorm(mid),
        lambda block, x: block.mlp(x)[0],
        after=lambda model, x: model.model.norm(x),
    ),
    "llama": _llama(),
    "mistral": _llama(),
    "mixtral": _llama(**MOE),
    "gemma2": _sandwich(sliding_window=4),
    "gemma3_text": _sandwich(sliding_window=4),
    "olmo2": Family(
        COMMON,
        lambda block, pre, mid: mid,
        lambda block, x: block.post_feedforward_layernorm(block.mlp(x)),
        after=lambda model, x: model.model.norm(x),
    ),
    "gpt2": Family(
        GPT2,
        lambda block, pre, mid: block.ln_2(mid),
        lambda block, x: block.mlp(x),
        after=lambda model, x: model.transformer.ln_f(x),
    ),
    "gpt_neox": _neox(parallel=True),
    "gpt_neox, serial": _neox(parallel=False),
    "phi3": _llama(),
    # Not promised, held all the same:
    "qwen2": _llama(),
    "olmo": _llama(),
    "olmo3": Family(
        {**COMMON, "sliding_window": 4},
        lambda block, pre, mid: mid,
        lambda block, x: block.post_feedforward_layernorm(block.mlp(x)),
        after=lambda model, x: model.model.norm(x),
    ),
    "smollm3": _llama(),
    "qwen3_5_text": _llama(
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=4,
        linear_value_head_dim=4,
    ),
    "phi": Family(
        COMMON,
        lambda block, pre, mid: block.input_layernorm(pre),
        lambda block, x: block.mlp(x),
        after=lambda model, x: model.model.final_layernorm(x),
    ),
    "gptj": Family(
        {**GPT2, "rotary_dim": 2},
        lambda block, pre, mid: block.ln_1(pre),
        lambda block, x: block.mlp(x),
        after=lambda model, x: model.transformer.ln_f(x),
    ),
    "glm4": Family(
        COMMON,
        lambda block, pre, mid: block.post_attention_layernorm(mid),
        lambda block, x: block.post_mlp_layernorm(block.mlp(x)),
        after=lambda model, x: model.model.norm(x),
    ),
}
ENCODERS = {
    "bert": Family(
        COMMON,
        lambda block, pre, mid: mid,
        lambda block, x: block.output.dense(block.intermediate(x)),
        lambda block, mid, out: block.output.LayerNorm(mid + out),
        lambda block, pre, out: block.attention.output.LayerNorm(pre + out),
    ),
    "esm": Family(
        {**COMMON, "position_embedding_type": "rotary", "mask_token_id": 3},
        lambda block, pre, mid: block.LayerNorm(mid),
        lambda block, x: block.output.dense(block.intermediate(x)),
        after=lambda model, x: model.encoder.emb_layer_norm_after(x),
    ),
    "vit": Family(
        {
            **{key: COMMON[key] for key in list(COMMON)[1:5]},
            "image_size": 8,
            "patch_size": 4,
        },
        lambda block, pre, mid: block.layernorm_after(mid),
        lambda block, x: block.mlp(x),
    ),
}
FAMILIES = {**DECODERS, **ENCODERS}


def build(family: str) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family.partition(",")[0], **FAMILIES[family].config)
        kind = AutoModelForCausalLM if family in DECODERS else AutoModel
        model = kind.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():  # norms and biases too: none may pass unnoticed
                parameter.add_(0.2 * torch.randn_like(parameter))
    return freeze(model, name=f"tiny {family}")


@dataclass(frozen=True)
class Example:
    """A tiny model, what its family's code says, and something to run it on."""

    name: str
    lm: LanguageModel
    family: Family
    inputs: Tensor

    def block(self, layer: int) -> nn.Module:
        """Found by what a block is named, not by how dictlearn finds it."""
        for path, module in self.lm.model.named_modules():
            if path.endswith((f"layers.{layer}", f"layer.{layer}", f"h.{layer}")):
                return module
        raise AssertionError(self.name)


_built: dict[str, Example] = {}


def example(name: str) -> Example:
    if name not in _built:
        lm = build(name)
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randint(4, VOCAB, (2, 7), generator=generator)
        if name == "vit":
            inputs = torch.randn(2, 3, 8, 8, generator=generator)
        _built[name] = Example(name, lm, FAMILIES[name], inputs)
    return _built[name]


def hooks_of(lm: LanguageModel) -> list[int]:
    """How many forward hooks each module has."""
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in lm.model.modules()]
