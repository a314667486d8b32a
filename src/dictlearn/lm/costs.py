"""Memory and work of a language model, from its sizes; the model may be on the meta device."""

from __future__ import annotations

from collections.abc import Sequence

from dictlearn.lm.language_model import OTHER, LanguageModel
from dictlearn.lm.sites import blocks, resolve
from dictlearn.types import ModelInfo


def weights(lm: LanguageModel) -> int:
    """The number of parameters, those of the other model included."""
    return sum(p.numel() for p in lm.model.parameters()) + (
        0 if lm.other is None else weights(lm.other)
    )


def layer_width(lm: LanguageModel) -> int:
    """Activations that one block holds per token, roughly: the residual and the MLP's."""
    text = lm.model.config.get_text_config().to_dict()
    hidden = text.get("hidden_size") or text.get("n_embd") or 0
    inner = text.get("intermediate_size") or text.get("n_inner") or 4 * hidden
    experts = text.get("num_experts_per_tok") or 0
    if experts:
        inner = experts * (text.get("moe_intermediate_size") or inner)
    return 4 * hidden + 3 * inner


def flops_per_token(lm: LanguageModel, info: ModelInfo, sites: Sequence[str]) -> float:
    """FLOPs per token of the blocks that a capture of `sites` runs, without attention scores.

    In a mixture of experts, only the experts that a token is routed to count.
    """
    theirs = [site.removeprefix(OTHER) for site in sites if site.startswith(OTHER)]
    if theirs and lm.other is not None:
        own = [site for site in sites if not site.startswith(OTHER)]
        flops = flops_per_token(lm, info, own) if own else 0.0
        return flops + flops_per_token(lm.other, lm.other.info, theirs)
    path, layers = blocks(lm.model)
    last = 0
    for site in sites:
        module_path = resolve(lm.model, site, info).module_path.removeprefix(f"{path}.")
        number = module_path.split(".")[0]
        last = max(last, int(number) if number.isdigit() else len(layers) - 1)
    text = lm.model.config.get_text_config().to_dict()
    experts = text.get("num_experts") or text.get("num_local_experts") or 1
    share = (text.get("num_experts_per_tok") or 1) / experts
    matrices = [
        p for layer in layers[: last + 1] for p in layer.named_parameters() if p[1].ndim > 1
    ]
    return sum(2.0 * p.numel() * (share if "experts" in name else 1) for name, p in matrices)
