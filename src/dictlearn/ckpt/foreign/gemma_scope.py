"""Reads Gemma Scope (Google DeepMind 2024, of Gemma 2): a folder with params.npz for each dictionary.

    <repository>/layer_12/width_16k/average_l0_82/params.npz
        W_enc [D, F], W_dec [F, D], b_enc [F], b_dec [D], threshold [F]

        f = relu(x W_enc + b_enc) if that is above the threshold, else 0; y = f W_dec + b_dec

The input is neither centred nor scaled. The file has neither model nor site; both are taken from the
names of the folders, as they are in the repository on the hub.

    gemma-scope-2b-pt-res          resid_post.L; the SAEs in embedding/ read resid_pre.0, see below
    gemma-scope-2b-pt-mlp          mlp_out.L: what the MLP adds to the residual, after the second norm
    gemma-scope-2b-pt-att          the concatenated outputs of the heads, before o_proj
    gemma-scope-2b-pt-transcoders  mlp_norm.L -> mlp_out.L: from after the first norm, before its gain

SAEs of the embeddings were trained on embeddings before Gemma multiplies them by sqrt(D). resid_pre.0
is after that, so here W_enc is divided by sqrt(D), and W_dec and b_dec are multiplied by it.
"""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor

from dictlearn.ckpt.foreign._layer import (
    build_layer,
    check_names,
    match_in_path,
    scales,
    transposed,
)
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
    tensors = read_params(path)
    repository = match_in_path(folder, REPOSITORY)
    layer = match_in_path(folder, LAYER)
    part = repository["part"] if repository else None
    source = target = UNKNOWN
    scale = 1.0
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
        training={"format": "gemma_scope", "model": model, **scales(1 / scale, 1 / scale)},
    )


def read_params(path: Path) -> dict[str, Tensor]:
    """A file's tensors by our names, in our layout."""
    tensors = read_npz(path)
    check_names(path, tensors, TENSORS)
    return {
        "W_enc": transposed(path, tensors["W_enc"]),
        "b_enc": tensors["b_enc"],
        "W_dec": tensors["W_dec"],
        "b_dec": tensors["b_dec"],
        # relu makes a negative threshold equal to zero.
        "raw_threshold_SF": tensors["threshold"].clamp_min(0),
    }


def sites_of(part: str, layer: str) -> tuple[str, str]:
    """(source, target) for the last part of a repository's name."""
    if part == "transcoders":
        return f"mlp_norm.{layer}", f"mlp_out.{layer}"
    heads = f"model.layers.{layer}.self_attn.o_proj:input"
    site = {"res": f"resid_post.{layer}", "mlp": f"mlp_out.{layer}", "att": heads}[part]
    return site, site
