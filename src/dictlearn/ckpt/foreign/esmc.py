"""Reads the SAEs of ESMC (Biohub 2026, a protein language model): layer_<L>.safetensors and config.json.

    biohub/ESMC-6B-sae-k64-codebook16384/config.json     d_model, codebook_dim, k, available_layers
    .../layer_60.safetensors     W_enc [D, F], W_dec [F, D], b_dec [D], idf [F], max [F]

        z = (x - mean x) / (std x + 1e-5) for each token
        f = the k largest of relu((z - b_dec) W_enc); z = f W_dec + b_dec

So the site is resid_pre.L:standardised, the standardised input of block L, or for SAEs of MLPs
(-sae-mlp-) mlp_out.L:standardised. idf and max are for dashboards and are ignored. A folder of several
layers is read as one dictionary; the path of a file reads one layer.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from dictlearn.ckpt.files import check_numbers, read_tensors
from dictlearn.ckpt.foreign._layer import (
    build_layer,
    check_names,
    entry,
    match_in_path,
    numbered_files,
    read_layers,
    read_object,
    transposed,
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
IGNORED = ("idf", "max")


def recognises(place: Path) -> bool:
    return bool(_files(place))


def read(place: Path) -> Dictionary:
    return read_layers(_files(place), _read_one)


def _files(place: Path) -> list[Path]:
    folder = place.parent if place.is_file() else place
    return numbered_files(place, NAME) if (folder / CONFIG).is_file() else []


def _read_one(path: Path) -> Dictionary:
    where = path.parent / CONFIG
    k = entry(read_object(where), "k", int, where)
    tensors = read_tensors(path)
    check_names(path, tensors, TENSORS, IGNORED)
    check_numbers(path, {name: tensors[name] for name in TENSORS})
    W_enc = transposed(path, tensors["W_enc"])
    layer, repository = NAME.fullmatch(path.name), match_in_path(path, REPOSITORY)
    assert layer is not None
    kind = "mlp_out" if repository and repository["mlp"] else "resid_pre"
    site = f"{kind}.{int(layer[1])}:standardised"
    return build_layer(
        path,
        {
            "W_enc": W_enc,
            "b_enc": torch.zeros(len(W_enc)),
            "W_dec": tensors["W_dec"],
            "b_dec": tensors["b_dec"],
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
