"""Reads Goodfire's SAEs: one file of tensors in a repository of the same name.

    Goodfire/Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth
        encoder_linear.weight [F, D], .bias [F], decoder_linear.weight [D, F], .bias [D]

        f = relu(W_enc x + b_enc); y = W_dec f + b_dec

The input is neither centred nor scaled. Model and layer are in the file's name; the site is
resid_post.L.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from dictlearn.ckpt.foreign._layer import build_layer, check_names, transposed
from dictlearn.ckpt.foreign._state import read_state
from dictlearn.dicts.dictionary import Dictionary

FILES, OPTIONAL, LAYERS, ALONE = ("*-SAE-l*.pt*",), (), False, "*-SAE-l*.pt*"
NAME = re.compile(r"(?P<model>[\w.-]+)-SAE-l(?P<layer>\d+)\.pth?")
OWNERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}  # first word of a model's name -> owner
TENSORS = {
    "encoder_linear.weight": "W_enc",
    "encoder_linear.bias": "b_enc",
    "decoder_linear.weight": "W_dec",
    "decoder_linear.bias": "b_dec",
}


def recognises(place: Path) -> bool:
    return bool(_files(place))


def read(place: Path) -> Dictionary:
    files = _files(place)
    if len(files) > 1:
        raise ValueError(
            f"{place}: holds {len(files)} dictionaries; name one of "
            f"{', '.join(ascii(path.name)[1:-1] for path in files[:5])}"
        )
    path = files[0]
    match = NAME.fullmatch(path.name)
    assert match is not None
    site = f"resid_post.{int(match['layer'])}"
    owner = next((OWNERS[word] for word in OWNERS if match["model"].startswith(word)), None)
    return build_layer(
        path,
        _tensors(path),
        source=site,
        target=site,
        sparsity={"name": "relu"},
        training={"format": "goodfire", "model": f"{owner}/{match['model']}" if owner else None},
    )


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place] if NAME.fullmatch(place.name) else []
    if not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if NAME.fullmatch(path.name))


def _tensors(path: Path) -> dict[str, Tensor]:
    tensors = read_state(path)
    check_names(path, tensors, TENSORS)
    ours = {our: tensors[their] for their, our in TENSORS.items()}
    return {**ours, "W_dec": transposed(path, ours["W_dec"])}
