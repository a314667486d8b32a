"""Reads Qwen-Scope (Qwen 2026, of Qwen3 and Qwen3.5): layer<L>.sae.pt, a file for each layer.

    Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer12.sae.pt
        W_enc [F, D], W_dec [D, F], b_enc [F], b_dec [D]

        f = the k largest of W_enc x + b_enc; y = W_dec f + b_dec

Nothing is subtracted from the input, and there is no scale. Which model and which k is only in the
repository's name: SAE-Res-<model>-W<width>-L0_<k>. The site is resid_post.L. A folder of several
layers is read as one dictionary; a file of it by its own path.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from dictlearn.ckpt.foreign._layer import build_layer, read_layers, said_by_path, turned
from dictlearn.ckpt.foreign._state import read_state
from dictlearn.dicts.dictionary import Dictionary

FILES, OPTIONAL, LAYERS, ALONE = ("layer*.sae.pt",), (), False, "layer*.sae.pt"
NAME = re.compile(r"layer(\d+)\.sae\.pt")
REPOSITORY = r"SAE-Res-(?P<model>[\w.-]+?)-W\d+K-L0_(?P<k>\d+)"
TENSORS = ("W_enc", "W_dec", "b_enc", "b_dec")


def recognises(place: Path) -> bool:
    return bool(_files(place))


def read(place: Path) -> Dictionary:
    return read_layers(_files(place), _read_one)


def _files(place: Path) -> list[Path]:
    """The place itself, or all layers of a folder, in their order."""
    if place.is_file():
        return [place] if NAME.fullmatch(place.name) else []
    if not place.is_dir():
        return []
    named = {int(m[1]): path for path in place.iterdir() if (m := NAME.fullmatch(path.name))}
    return [named[layer] for layer in sorted(named)]


def _read_one(path: Path) -> Dictionary:
    repository = said_by_path(path, REPOSITORY)
    if repository is None:
        raise ValueError(
            f"{path}: k is not in the file; want it in a folder named as the repository is, "
            f"SAE-Res-Qwen3-1.7B-Base-W32K-L0_50 where k is 50"
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
    found = read_state(path)
    if set(found) != set(TENSORS):
        shown = ", ".join(ascii(name)[1:-1] for name in sorted(found)) or "none"
        raise ValueError(f"{path}: want tensors {', '.join(TENSORS)}; found {shown}")
    return {**found, "W_dec": turned(path, found["W_dec"])}
