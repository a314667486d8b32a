"""Which files a model's weights are read from, checked before transformers opens one of them.

What lies in the folder decides little: model.safetensors.index.json and config.json name the files
that are read, and transformers hands whatever isn't *.safetensors to torch.load. So it is the names
that are checked: plain ones, of safetensors files in the folder itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel

from dictlearn.disk.amiss import told
from dictlearn.lm.hub import read_json

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
SLACK, SLACK_NUMBERS = 2, 1 << 24  # what a model may have beyond its weights: tied ones, a pooler
TOKENIZER_CONFIG = "tokenizer_config.json"


def weight_files(path: str, folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, in order; `path` is what the user wrote.

    Raises:
        ValueError: one sentence, where the weights are missing, pickled, or outside the folder.
    """
    where = f"model.path={path}"
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"{where}: holds an adapter ({ADAPTER}), which dictlearn does not apply; merge it into "
            f"its model and give that model's folder, or remove the file"
        )
    named: Any = read_json(path, folder, "config.json").get("transformers_weights")
    if named is not None and not (_is_plain(named, ".safetensors") or _is_plain(named, INDEX)):
        raise ValueError(
            f"{where}: config.json says transformers_weights={named!r}; want the name of a "
            f"*.safetensors file in its folder"
        )
    if named is None:
        named = next((name for name in (WHOLE, INDEX) if (folder / name).is_file()), None)
    if named is None:
        raise _nothing(where, folder)
    names = [named] if named.endswith(".safetensors") else _shards(path, folder, named)
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{where}: no {name} in {folder}; a part of the weights is missing")
    return [folder / name for name in names]


def check_sizes(path: str, files: list[Path], config: PretrainedConfig, loader: Any) -> None:
    """Refuses a config that describes a model much larger than its weights, before it is made.

    A kilobyte of JSON can name sizes that take all memory, or a number of layers that takes days.
    `loader` is the one of transformers' that is to load it.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # numbers are packed there
    try:
        n_tensors, stored = _stored(files)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model.path={path}: cannot be loaded: {told(error)}") from error
    n_layers = getattr(config.get_text_config(), "num_hidden_layers", None) or 0
    described = 0
    if n_layers <= n_tensors:
        model = without_weights(path, config, loader)
        described = sum(parameter.numel() for parameter in model.parameters())
    if n_layers > n_tensors or described > SLACK * stored + SLACK_NUMBERS:
        raise ValueError(
            f"model.path={path}: config.json describes {n_layers:,} layers and {described:,} numbers, "
            f"and its weights hold {stored:,} in {n_tensors:,} tensors; they do not belong together"
        )


def without_weights(path: str, config: PretrainedConfig, loader: Any) -> PreTrainedModel:
    """The model that the config describes, on the meta device; ValueError where it describes none."""
    try:
        with torch.device("meta"):
            return loader.from_config(config, trust_remote_code=False)
    except Exception as error:  # whatever a family's code stumbles over in a config of nonsense
        raise ValueError(
            f"model.path={path}: config.json describes no model: {' '.join(str(error).split())}"
        ) from error


def _stored(files: list[Path]) -> tuple[int, int]:
    """(tensors, numbers in them), from the headers."""
    sizes = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    return len(sizes), sum(sizes)


def check_tokenizer(path: str, folder: Path) -> None:
    """Refuses a tokenizer_config.json that names files outside the folder, where they are there."""
    if not (folder / TOKENIZER_CONFIG).is_file():
        return
    for key, value in read_json(path, folder, TOKENIZER_CONFIG).items():
        if not key.endswith(("_file", "_files")):
            continue
        for name in value if isinstance(value, list) else [value]:
            if isinstance(name, str) and not _is_plain(name) and (folder / name).exists():
                raise ValueError(
                    f"model.path={path}: {TOKENIZER_CONFIG} says {key}={name!r}, which is not in its "
                    f"folder; want the name of a file in {folder}"
                )


def _shards(path: str, folder: Path, index: str) -> list[str]:
    """The files that an index names, each once."""
    found = read_json(path, folder, index)
    weights = found.get("weight_map")
    if not isinstance(weights, dict) or not isinstance(found.get("metadata"), dict) or not weights:
        raise ValueError(
            f"model.path={path}: {index} is no index of weights; want metadata and a weight_map"
        )
    for tensor, name in weights.items():
        if not _is_plain(name, ".safetensors"):
            raise ValueError(
                f"model.path={path}: {index} says that {tensor} is in {name!r}; want the name of a "
                f"*.safetensors file in its folder, as pickled files can run code when loaded"
            )
    return sorted(set(weights.values()))


def _nothing(where: str, folder: Path) -> ValueError:
    pickled = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
    if any(folder.glob("*.safetensors")):
        return ValueError(f"{where}: {folder} has neither {WHOLE} nor {INDEX}; want one of them")
    if pickled:
        return ValueError(
            f"{where}: its weights are pickled ({pickled[0]}), which can run code when loaded; "
            f"want *.safetensors"
        )
    return ValueError(f"{where}: no *.safetensors in {folder}; the weights are missing")


def _is_plain(name: Any, end: str = "") -> bool:
    """Whether it is a file's name and no path."""
    if not isinstance(name, str) or not name.endswith(end) or name in ("", ".", ".."):
        return False
    return not any(mark in name for mark in "/\\:\0")
