"""Reads the SAEs of ESMC (Biohub 2026, a protein language model): layer_<L>.safetensors and config.json.

    biohub/ESMC-6B-sae-k64-codebook16384/config.json     d_model, codebook_dim, k, available_layers
    .../layer_60.safetensors     W_enc [D, F], W_dec [F, D], b_dec [D], idf [F], max [F]

        z = (x - mean x) / (std x + 1e-5), of each token by itself
        f = the k largest of relu((z - b_dec) W_enc); z = f W_dec + b_dec

So the site is the standardised input of block L, resid_pre.L:standardised; of the SAEs of MLPs
(-sae-mlp-), mlp_out.L:standardised. idf and max are for showing features, and left out.
A folder of several layers is read as one dictionary; a file of it by its own path.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from dictlearn.ckpt.files import check_numbers, read_tensors
from dictlearn.ckpt.foreign._layer import (
    build_layer,
    entry,
    read_layers,
    read_object,
    said_by_path,
    turned,
)
from dictlearn.dicts.dictionary import Dictionary

CONFIG = "config.json"
FILES, OPTIONAL, LAYERS, ALONE = (
    (CONFIG, "layer_*.safetensors"),
    (CONFIG,),
    False,
    "layer_*.safetensors",
)
NAME = re.compile(r"layer_(\d+)\.safetensors")
REPOSITORY = r"(?P<model>ESMC-\d+[MB])-sae-(?P<mlp>mlp-)?"
TENSORS = ("W_enc", "W_dec", "b_dec")
SHOWN = {"idf", "max"}


def recognises(place: Path) -> bool:
    return bool(_files(place))


def read(place: Path) -> Dictionary:
    return read_layers(_files(place), _read_one)


def _files(place: Path) -> list[Path]:
    """The place itself, or all layers of a folder, in their order, if the configuration is there."""
    folder = place.parent if place.is_file() else place
    if not (folder / CONFIG).is_file():
        return []
    if place.is_file():
        return [place] if NAME.fullmatch(place.name) else []
    named = {int(m[1]): path for path in place.iterdir() if (m := NAME.fullmatch(path.name))}
    return [named[layer] for layer in sorted(named)]


def _read_one(path: Path) -> Dictionary:
    where = path.parent / CONFIG
    k = entry(read_object(where), "k", int, where)
    found = read_tensors(path)
    if not {*TENSORS} <= {*found} <= {*TENSORS} | SHOWN:
        shown = ", ".join(ascii(name)[1:-1] for name in sorted(found)) or "none"
        raise ValueError(f"{path}: want tensors {', '.join(TENSORS)}, idf and max; found {shown}")
    check_numbers(path, {name: found[name] for name in TENSORS})
    W_enc = turned(path, found["W_enc"])
    layer, repository = NAME.fullmatch(path.name), said_by_path(path, REPOSITORY)
    assert layer is not None
    kind = "mlp_out" if repository and repository["mlp"] else "resid_pre"
    site = f"{kind}.{int(layer[1])}:standardised"
    return build_layer(
        path,
        {
            "W_enc": W_enc,
            "b_enc": torch.zeros(len(W_enc)),
            "W_dec": found["W_dec"],
            "b_dec": found["b_dec"],
        },
        source=site,
        target=site,
        sparsity={"name": "topk", "k": k},
        k=k,
        centre=True,
        training={
            "format": "esmc",
            "model": f"biohub/{repository['model']}" if repository else None,
        },
    )
