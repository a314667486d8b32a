"""Find and check the files of a model's weights before transformers opens any.

model.safetensors.index.json and config.json name the files to read, and transformers gives every
file that isn't *.safetensors to torch.load, which unpickles. So each name must be the plain name of
a safetensors file in the folder itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PretrainedConfig, PreTrainedModel

from dictlearn.disk.errors import error_text
from dictlearn.lm.hub import read_json

SINGLE_FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
SLACK, SLACK_NUMBERS = 2, 1 << 24  # for parameters that are not stored: tied ones, a pooler
TOKENIZER_CONFIG = "tokenizer_config.json"


def weight_files(path: str, folder: Path) -> list[Path]:
    """The safetensors files that hold the weights, in order; `path` is what the user wrote.

    Raises:
        ValueError: if weights are missing, pickled or outside the folder.
    """
    where = f"model.path={path}"
    if (folder / ADAPTER).exists():
        raise ValueError(
            f"{where}: holds an adapter ({ADAPTER}), which dictlearn does not apply; merge it into "
            f"its model and give that model's folder, or remove the file"
        )
    name: Any = read_json(path, folder, "config.json").get("transformers_weights")
    if name is not None and not (_is_plain(name, ".safetensors") or _is_plain(name, INDEX)):
        raise ValueError(
            f"{where}: config.json says transformers_weights={name!r}; want the name of a "
            f"*.safetensors file in its folder"
        )
    if name is None:
        name = next((n for n in (SINGLE_FILE, INDEX) if (folder / n).is_file()), None)
    if name is None:
        raise _no_weights(where, folder)
    files = [name] if name.endswith(".safetensors") else _shards(path, folder, name)
    for file in files:
        if not (folder / file).is_file():
            raise ValueError(f"{where}: no {file} in {folder}; a part of the weights is missing")
    return [folder / file for file in files]


def check_sizes(path: str, files: list[Path], config: PretrainedConfig, loader: Any) -> None:
    """Refuses a config that describes a much larger model than the weights, before building it.

    A kilobyte of JSON can ask for sizes that take all memory, or for so many layers that building
    them takes days. `loader` is the class of transformers that will load the model.
    """
    if getattr(config, "quantization_config", None) is not None:
        return  # quantised weights are packed
    try:
        n_tensors, stored = _stored(files)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"model.path={path}: cannot be loaded: {error_text(error)}") from error
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
    """The model on the meta device. Raises ValueError if no model can be built from the config."""
    try:
        with torch.device("meta"):
            return loader.from_config(config, trust_remote_code=False)
    except Exception as error:  # a bad config can fail anywhere in a family's code
        raise ValueError(
            f"model.path={path}: config.json describes no model: {' '.join(str(error).split())}"
        ) from error


def _stored(files: list[Path]) -> tuple[int, int]:
    """The number of tensors and of their elements, from the headers."""
    sizes = []
    for path in files:
        with safe_open(path, framework="pt") as file:
            sizes += [math.prod(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118
    return len(sizes), sum(sizes)


def check_tokenizer(path: str, folder: Path) -> None:
    """Refuses a tokenizer_config.json that names an existing file outside the folder."""
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
    """The files that an index names, sorted, without repeats."""
    content = read_json(path, folder, index)
    weights = content.get("weight_map")
    if (
        not weights
        or not isinstance(weights, dict)
        or not isinstance(content.get("metadata"), dict)
    ):
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


def _no_weights(where: str, folder: Path) -> ValueError:
    pickled = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth") for f in folder.glob(pattern))
    if any(folder.glob("*.safetensors")):
        return ValueError(
            f"{where}: {folder} has neither {SINGLE_FILE} nor {INDEX}; want one of them"
        )
    if pickled:
        return ValueError(
            f"{where}: its weights are pickled ({pickled[0]}), which can run code when loaded; "
            f"want *.safetensors"
        )
    return ValueError(f"{where}: no *.safetensors in {folder}; the weights are missing")


def _is_plain(name: Any, end: str = "") -> bool:
    """Whether `name` is a file name without a path."""
    if not isinstance(name, str) or not name.endswith(end) or name in ("", ".", ".."):
        return False
    return not any(mark in name for mark in "/\\:\0")
