"""sparsify's folders, as `SparseCoder.load_from_disk` and `load_many` read them; delphi takes them too.

The layout is that of eai-sparsify 1.3: a folder for each hookpoint, which is a module's path in the
model without its head, with

    cfg.json             activation topk, k, num_latents, d_in, transcode, skip_connection
    sae.safetensors      encoder.weight [F, D], encoder.bias [F], W_dec [F, D], b_dec [D],
                         W_skip [D, D]

Every token has k features in sparsify, and there are no thresholds, so other sparsities are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from dictlearn.ckpt.files import write_tensors
from dictlearn.ckpt.foreign.sparsify import CONFIG, WEIGHTS
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import recentred, split_layers
from dictlearn.export import _layers
from dictlearn.export.protocol import Exporter, Job
from dictlearn.types import ModelInfo

BLOCKS = {"gpt2": "h", "bert": "encoder.layer", "esm": "encoder.layer", "vit": "encoder.layer"}
# The name of the attention in families where the outputs of MLP and attention modules are added to the
# residual. In other families a site is not a module's output, and the folder has the site's name.
ATTENTION = {"gpt2": "attn", "llama": "self_attn", "mistral": "self_attn", "qwen3": "self_attn"}


@final
class Sparsify(Exporter):
    """SAEs, transcoders and skip transcoders with TopK features, a folder each."""

    name = "sparsify"

    def holds(self, dictionary: Dictionary) -> frozenset[str]:
        return frozenset({"topk"})

    def refusal(self, dictionary: Dictionary, info: ModelInfo) -> str | None:
        sparsity = dictionary.sparsity
        if sparsity.name != "topk":
            return (
                f"every token has exactly k features there, the largest pre-activations, and these "
                f"are {sparsity.name} features; train with sparsity=topk"
            )
        if sparsity.options()["across_layers"]:
            return "its layers cannot share their k features"
        return _layers.refusal("sparsify", dictionary)

    def write(self, job: Job, folder: Path) -> None:
        for layer in split_layers(job.dictionary):
            inner = folder / hookpoint(layer.sources[0], layer.targets[0], job.info.family)
            inner.mkdir()
            transcode = layer.sources != layer.targets
            layer = recentred(layer, centre=not transcode)
            write_tensors(inner / WEIGHTS, _tensors(layer))
            cfg = {
                "activation": "topk",
                "expansion_factor": max(1, layer.n_features // layer.width),
                "normalize_decoder": layer.shape.unit_norm,
                "num_latents": layer.n_features,
                "k": layer.sparsity.options()["k"],
                "multi_topk": False,
                "skip_connection": layer.shape.skip,
                "transcode": transcode,
                "d_in": layer.width,
                "dictlearn": _layers.importer_fields(layer) | {"model": job.info.name},
            }
            (inner / CONFIG).write_text(json.dumps(cfg, indent=2) + "\n")

    def usage(self, dictionary: Dictionary, repo: str, inner: str) -> str:
        return f"""from huggingface_hub import snapshot_download
from sparsify import SparseCoder

folder = snapshot_download("{repo}", allow_patterns="{inner}/*")
coders = SparseCoder.load_many(f"{{folder}}/{inner}", local=True)  # by hookpoint
"""


def hookpoint(source: str, target: str, family: str) -> str:
    """The module that sparsify would hook, or the site's name if no module has that output."""
    kind, _, layer = target.partition(".")
    block = f"{BLOCKS.get(family, 'layers')}.{layer}"
    if kind == "resid_post" and source == target:
        return block
    if family in ATTENTION:
        if kind == "mlp_out" and source in (target, f"mlp_in.{layer}"):
            return f"{block}.mlp"
        if kind == "attn_out" and source == target:
            return f"{block}.{ATTENTION[family]}"
    return source


@torch.no_grad()
def _tensors(layer: Dictionary) -> dict[str, Tensor]:
    tensors = {
        "encoder.weight": layer.encoder.W_enc[0],
        "encoder.bias": layer.encoder.b_enc[0],
        "W_dec": layer.W_dec,
        "b_dec": layer.decoder.b_dec[0],
    }
    return tensors if layer.W_skip is None else tensors | {"W_skip": layer.W_skip[0]}
