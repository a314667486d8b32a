"""Reads and writes features/output_scores.safetensors: how much each feature raises its own tokens.

It stands beside the store, because a pass of its own makes it: a store without it is whole. It has one
tensor, `output_score`, float32 [S, F], NaN where a feature has no score, and the description of the
store that it belongs to in the header.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dictlearn.disk.whole import replacing
from dictlearn.store.layout import Info

FILE, TENSOR = "output_scores.safetensors", "output_score"


def write_output_scores(folder: Path, info: Info, scores_SF: Tensor) -> Path:
    """Writes the scores into `<run>/features`, whole or not at all. Raises SaveError."""
    path = folder / FILE
    with replacing(path) as partial:
        save_file({TENSOR: scores_SF.float().contiguous()}, partial, metadata=_origin(info))
    return path


def read_output_scores(folder: Path, info: Info) -> Tensor | None:
    """The scores, float32 [S, F]; None where there are none, or those of another dictionary or text.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    wrong = ValueError(f"{path}: is damaged; `dictlearn features output_scores=only` makes it anew")
    try:
        with safe_open(path, framework="pt") as file:
            if file.metadata() != _origin(info):
                return None
            slice_ = file.get_slice(TENSOR)
            if list(slice_.get_shape()) != [info.code_sources, info.n_features]:
                raise wrong
            scores_SF = slice_[:]
    except (OSError, SafetensorError, RuntimeError, KeyError):
        raise wrong from None
    if scores_SF.dtype != torch.float32 or bool((scores_SF.abs() > 1).any()):
        raise wrong
    return scores_SF


def _origin(info: Info) -> dict[str, str]:
    """What the scores depend on: the dictionary, and the text that its maxima come from."""
    return {
        "of": f"{info.dictionary_sha256} {info.tokens}"
    }  # one key: safetensors shuffles several
