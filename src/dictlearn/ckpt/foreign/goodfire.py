"""Reads Goodfire's SAEs: one file of tensors in a repository of its name.

    Goodfire/Llama-3.1-8B-Instruct-SAE-l19/Llama-3.1-8B-Instruct-SAE-l19.pth
        encoder_linear.weight [F, D], .bias [F], decoder_linear.weight [D, F], .bias [D]

        f = relu(W_enc x + b_enc); y = W_dec f + b_dec

Nothing is subtracted from the input, and there is no scale. Model and layer are in the file's name; the
site is resid_post.L.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from dictlearn.ckpt.foreign._layer import build_layer, turned
from dictlearn.ckpt.foreign._state import read_state
from dictlearn.dicts.dictionary import Dictionary

FILES, OPTIONAL, LAYERS, ALONE = ("*-SAE-l*.pt*",), (), False, "*-SAE-l*.pt*"
NAME = re.compile(r"(?P<model>[\w.-]+)-SAE-l(?P<layer>\d+)\.pth?")
OWNERS = {"Llama": "meta-llama", "DeepSeek": "deepseek-ai"}  # of models whose names begin so
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
    named = NAME.fullmatch(path.name)
    assert named is not None
    site = f"resid_post.{int(named['layer'])}"
    owner = next((OWNERS[word] for word in OWNERS if named["model"].startswith(word)), None)
    return build_layer(
        path,
        _tensors(path),
        source=site,
        target=site,
        sparsity={"name": "relu"},
        training={"format": "goodfire", "model": f"{owner}/{named['model']}" if owner else None},
    )


def _files(place: Path) -> list[Path]:
    if place.is_file():
        return [place] if NAME.fullmatch(place.name) else []
    if not place.is_dir():
        return []
    return sorted(path for path in place.iterdir() if NAME.fullmatch(path.name))


def _tensors(path: Path) -> dict[str, Tensor]:
    found = read_state(path)
    if set(found) != set(TENSORS):
        shown = ", ".join(ascii(name)[1:-1] for name in sorted(found)) or "none"
        raise ValueError(f"{path}: want tensors {', '.join(TENSORS)}; found {shown}")
    ours = {our: found[their] for their, our in TENSORS.items()}
    return {**ours, "W_dec": turned(path, ours["W_dec"])}
