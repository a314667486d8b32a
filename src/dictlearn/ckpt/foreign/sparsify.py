"""Reads sparsify's folders; `export/sparsify.py` describes the layout.

A folder of sparse coders by hookpoint whose shapes agree is read as one dictionary, a layer each.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from dictlearn.ckpt.files import read_tensors
from dictlearn.ckpt.foreign._layer import (
    build_layer,
    check_names,
    dictlearn_model,
    dictlearn_sites,
    entry,
    layer_folders,
    read_layers,
    read_object,
    refuse_unknown,
)
from dictlearn.dicts.dictionary import Dictionary

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
FILES, OPTIONAL, LAYERS = (CONFIG, WEIGHTS), (), True
KNOWN = """
    activation expansion_factor normalize_decoder num_latents k multi_topk skip_connection
    transcode d_in dictlearn
"""
NAMES = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}


def recognises(folder: Path) -> bool:
    return bool(layer_folders(folder, (CONFIG, WEIGHTS)))


def read(folder: Path) -> Dictionary:
    return read_layers(layer_folders(folder, (CONFIG, WEIGHTS)), _read_one)


def sites_of(hookpoint: str, transcode: bool) -> tuple[str, str]:
    """(source, target) of a module of the model without its head, as sparsify names them."""
    match = re.fullmatch(
        r"(?:layers|h|encoder\.layer)\.(\d+)(\.mlp|\.self_attn|\.attn)?", hookpoint
    )
    kind, layer = (match[2], match[1]) if match else (None, "")
    if transcode and kind == ".mlp":
        return f"mlp_in.{layer}", f"mlp_out.{layer}"
    if transcode:
        return f"{hookpoint}:input", f"{hookpoint}:output"
    site = f"{hookpoint}:output"
    if match:
        names = {None: "resid_post", ".mlp": "mlp_out"}
        site = f"{names.get(kind, 'attn_out')}.{layer}"
    return site, site


def _read_one(folder: Path) -> Dictionary:
    where = folder / CONFIG
    cfg = read_object(where)
    refuse_unknown(cfg, KNOWN, where)
    activation = entry(cfg, "activation", str, where, "topk")
    if activation != "topk":
        raise ValueError(f"{where}: activation={activation} is no sparsity here; want topk")
    skip = entry(cfg, "skip_connection", bool, where, False)
    transcode = entry(cfg, "transcode", bool, where, False)
    k = entry(cfg, "k", int, where, 32)
    source, target = dictlearn_sites(cfg) or sites_of(folder.name, transcode)
    return build_layer(
        where,
        _tensors(folder / WEIGHTS, skip),
        source=source,
        target=target,
        sparsity={"name": "topk", "k": k},
        k=k,
        centre=not transcode,
        training={"format": "sparsify", "model": dictlearn_model(cfg)},
    )


def _tensors(path: Path, skip: bool) -> dict[str, Tensor]:
    names = NAMES | ({"W_skip": "W_skip"} if skip else {})
    tensors = read_tensors(path)
    check_names(path, tensors, names)
    return {names[name]: tensor for name, tensor in tensors.items()}
