"""Reads Llama Scope (OpenMOSS 2024, of Llama 3.1 8B), in the layout of an early OpenMOSS library.

    Llama3_1-8B-Base-L15R-8x/hyperparams.json, .../checkpoints/final.safetensors
        encoder.weight [F, D], encoder.bias [F], decoder.weight [D, F], decoder.bias [D]

`openmoss` has the formulas. There is one threshold, jump_relu_threshold, in units of raw activations:
it is compared with h |W_dec| / s_out. (SAELens takes |W_dec| to be 1 here.)
"""

from __future__ import annotations

from pathlib import Path

import torch

from dictlearn.ckpt.files import read_tensors
from dictlearn.ckpt.foreign._layer import entry, read_object
from dictlearn.ckpt.foreign.openmoss import NORM, build_openmoss
from dictlearn.dicts.dictionary import Dictionary

CONFIG, WEIGHTS = "hyperparams.json", "checkpoints/final.safetensors"
FILES, OPTIONAL, LAYERS = (CONFIG, WEIGHTS), (), False


def recognises(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def read(folder: Path) -> Dictionary:
    where, path = folder / CONFIG, folder / WEIGHTS
    cfg = read_object(where)
    entries = entry(cfg, NORM, dict, where, {})
    norms = {str(end): _number(entries, end, where) for end in entries}
    threshold = None
    if cfg.get("jump_relu_threshold") is not None:
        threshold = torch.tensor(_number(cfg, "jump_relu_threshold", where))
    dictionary = build_openmoss(where, cfg, path, read_tensors(path), norms, threshold, raw=True)
    dictionary.provenance["format"] = "llama_scope"
    return dictionary


def _number(config: dict[str, object], key: str, where: Path) -> float:
    value = config[key]
    exact = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53
    return float(value) if exact else entry(config, key, float, where)  # type: ignore[arg-type]
