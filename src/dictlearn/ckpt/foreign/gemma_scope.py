"""Reads Gemma Scope (Google DeepMind 2024, of Gemma 2): a folder with params.npz for each dictionary.

    <repository>/layer_12/width_16k/average_l0_82/params.npz
        W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D], threshold [F]

        f = relu(x W_enc + b_enc) where that is above the threshold; y = f W_dec + b_dec

Nothing is subtracted from the input, and there is no scale. Neither model nor site is in the file:
both are taken from the folder's names, which are those of the repository on the hub.

    gemma-scope-2b-pt-res          resid_post.L; the SAEs in embedding/ read resid_pre.0, see below
    gemma-scope-2b-pt-mlp          mlp_out.L: what the MLP adds to the residual, behind the second norm
    gemma-scope-2b-pt-att          the heads' outputs side by side, before o_proj
    gemma-scope-2b-pt-transcoders  mlp_norm.L -> mlp_out.L: read behind the first norm, before its gain

SAEs of the embeddings were trained on embeddings before Gemma multiplies them by sqrt(D). resid_pre.0
is what they are after that, so W_enc is divided here by sqrt(D), and what is written is multiplied.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from dictlearn.ckpt.foreign._layer import build_layer, said_by_path, turned
from dictlearn.ckpt.foreign._npz import read_npz
from dictlearn.dicts.dictionary import Dictionary

WEIGHTS = "params.npz"
FILES, OPTIONAL, LAYERS = (WEIGHTS,), (), False
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
REPOSITORY = r"gemma-scope-(?P<size>\d+b)-(?P<tuned>pt|it)-(?P<part>res|mlp|att|transcoders)\b"
LAYER = r"/layer_(\d+)(?=/|$)"
EMBEDDINGS = "resid_pre.0"
UNKNOWN = "unknown:output"


def recognises(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file()


def read(folder: Path) -> Dictionary:
    path = folder / WEIGHTS
    tensors = named(path)
    repository = said_by_path(folder, REPOSITORY)
    layer = said_by_path(folder, LAYER)
    part = repository["part"] if repository else None
    source = target = UNKNOWN
    if part == "res" and "embedding" in folder.parts:
        source = target = EMBEDDINGS
        scale = math.sqrt(tensors["W_enc"].shape[1])
        tensors["W_enc"] = tensors["W_enc"] / scale
        tensors["W_dec"], tensors["b_dec"] = tensors["W_dec"] * scale, tensors["b_dec"] * scale
    elif part is not None and layer is not None:
        source, target = sites_of(part, layer[1])
    model = None
    if repository:
        tuned = "-it" if repository["tuned"] == "it" else ""
        model = f"google/gemma-2-{repository['size']}{tuned}"
    return build_layer(
        path,
        tensors,
        source=source,
        target=target,
        sparsity={"name": "jumprelu"},
        training={"format": "gemma_scope", "model": model},
    )


def named(path: Path) -> dict[str, Tensor]:
    """A file's tensors by our names, turned the way round that ours are."""
    found = read_npz(path)
    if set(found) != set(TENSORS):
        shown = ", ".join(ascii(name)[1:-1] for name in sorted(found)) or "none"
        raise ValueError(f"{path}: want tensors {', '.join(TENSORS)}; found {shown}")
    return {
        "W_enc": turned(path, found["W_enc"]),
        "b_enc": found["b_enc"],
        "W_dec": found["W_dec"],
        "b_dec": found["b_dec"],
        # A negative threshold lets through what relu lets through.
        "raw_threshold_SF": found["threshold"].clamp_min(0),
    }


def sites_of(part: str, layer: str) -> tuple[str, str]:
    """(source, target) of a repository's last word."""
    if part == "transcoders":
        return f"mlp_norm.{layer}", f"mlp_out.{layer}"
    heads = f"model.layers.{layer}.self_attn.o_proj:input"
    site = {"res": f"resid_post.{layer}", "mlp": f"mlp_out.{layer}", "att": heads}[part]
    return site, site
