"""Reads Qwen-Scope (Qwen 2026, of Qwen3 and Qwen3.5): layer<L>.sae.pt, a file for each layer.

    Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer12.sae.pt
        W_enc [F, D], W_dec [D, F], b_enc [F], b_dec [D]

        f = the k largest of W_enc x + b_enc; y = W_dec f + b_dec

The input is neither centred nor scaled. Model and k are only in the repository's name,
SAE-Res-<model>-W<width>-L0_<k>. The site is resid_post.L. A folder of several layers is read as one
dictionary; the path of a file reads one layer.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from dictlearn.ckpt.foreign._layer import (
    build_layer,
    check_names,
    match_in_path,
    numbered_files,
    read_layers,
    transposed,
)
from dictlearn.ckpt.foreign._state import read_state
from dictlearn.dicts.dictionary import Dictionary

FILES, OPTIONAL, LAYERS, ALONE = ("layer*.sae.pt",), (), False, "layer*.sae.pt"
NAME = re.compile(r"layer(\d+)\.sae\.pt")
REPOSITORY = r"SAE-Res-(?P<model>[\w.-]+?)-W\d+K-L0_(?P<k>\d+)"
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def recognises(place: Path) -> bool:
    return bool(numbered_files(place, NAME))


def read(place: Path) -> Dictionary:
    return read_layers(numbered_files(place, NAME), _read_one)


def _read_one(path: Path) -> Dictionary:
    repository = match_in_path(path, REPOSITORY)
    if repository is None:
        raise ValueError(
            f"{path}: k is not in the file; want a folder with the repository's name, such as "
            f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_50 for k = 50"
        )
    layer = NAME.fullmatch(path.name)
    assert layer is not None
    site, k = f"resid_post.{int(layer[1])}", int(repository["k"])
    return build_layer(
        path,
        _tensors(path),
        source=site,
        target=site,
        sparsity={"name": "topk", "k": k},
        k=k,
        training={"format": "qwen_scope", "model": f"Qwen/{repository['model']}"},
    )


def _tensors(path: Path) -> dict[str, Tensor]:
    tensors = read_state(path)
    check_names(path, tensors, TENSORS)
    return {**tensors, "W_dec": transposed(path, tensors["W_dec"])}
