"""Shared by formats with one source and one target, in which several layers have a folder each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictlearn.ckpt.files import check_numbers
from dictlearn.dicts.description import from_json, shown
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import join_layers
from dictlearn.disk.strict_json import read_json

CONFIG_BYTES = 16 << 20
JsonObject = Mapping[str, Any]

NAMES = {
    "W_enc": "encoder.W_enc",
    "b_enc": "encoder.b_enc",
    "W_dec": "decoder.W_dec",
    "b_dec": "decoder.b_dec",
    "W_skip": "W_skip",
}


def build_layer(
    where: Path,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    target: str,
    sparsity: JsonObject,
    k: float | None = None,
    centre: bool = False,
    prefixes: tuple[int, ...] = (),
    training: JsonObject,
) -> Dictionary:
    """A dictionary of one source, float32, in evaluation mode.

    Args:
        where: the file, for messages.
        tensors: W_enc [F, D], b_enc [F], W_dec [F, D], b_dec [D], and if it has them W_skip [D, D]
            and the sparsity's parameters, [F] each, by their names in our state dict.
        sparsity: its name and options, as in dictionary.json.
        k: features per token; None if it is unknown and nothing depends on it.
    """
    n_features, width = _check_shapes(where, tensors)
    check_numbers(where, tensors)
    if k is not None and not 0 < k <= n_features:
        raise ValueError(f"{where}: k={k}; want 1 to the {n_features} features")
    described = {
        "kind": "sae" if source == target else "transcoder",
        "sources": [source],
        "targets": [target],
        "width": width,
        "n_features": n_features,
        "k": 1.0 if k is None else k,
        "centre": centre,
        "skip": "W_skip" in tensors,
        "unit_norm": False,
        "prefixes": prefixes,
        "sparsity": sparsity,
    }
    try:
        with torch.device("meta"):
            dictionary = from_json(described)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    renamed = {NAMES.get(name, f"sparsity.{name}"): tensor for name, tensor in tensors.items()}
    state = {name: tensor.float()[None].contiguous() for name, tensor in renamed.items()}
    dictionary.load_state_dict(state, assign=True)
    dictionary.provenance = dict(training)
    return dictionary.eval().requires_grad_(False)


def _check_shapes(where: Path, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """The number of features and the width. Raises ValueError unless all tensors have them."""
    if tensors["W_enc"].ndim != 2 or 0 in tensors["W_enc"].shape:
        raise ValueError(f"{where}: W_enc of shape {list(tensors['W_enc'].shape)}; want a matrix")
    n_features, width = tensors["W_enc"].shape
    shapes = {"W_enc": (n_features, width), "W_dec": (n_features, width), "b_dec": (width,)}
    shapes["W_skip"] = (width, width)
    for name, tensor in tensors.items():
        shape = shapes.get(name, (n_features,))
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{where}: {name} has shape {list(tensor.shape)} where W_enc has {n_features} "
                f"features of width {width}; want {list(shape)}, with equal widths of input and "
                f"output"
            )
    return n_features, width


def scales(scale_in: float, scale_out: float) -> dict[str, float]:
    """For `provenance`: what activations were multiplied by in training, if that is in the weights."""
    unscaled = (scale_in, scale_out) == (1.0, 1.0)
    return {} if unscaled else {"input_scale": scale_in, "output_scale": scale_out}


def layer_folders(folder: Path, files: tuple[str, ...]) -> list[Path]:
    """The folder itself if it has these files, else its subfolders with them, in layer order."""
    if _has(folder, files):
        return [folder]
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _has(path, files)), key=_natural)


def read_layers(folders: list[Path], read_one: Callable[[Path], Dictionary]) -> Dictionary:
    """One dictionary of all folders: the only one, or the joined layers."""
    layers = [read_one(folder) for folder in folders]
    if len(layers) == 1:
        return layers[0]
    first = _comparable(layers[0])
    for path, layer in zip(folders, layers, strict=True):
        if _comparable(layer) != first:
            raise ValueError(
                f"{path}: its shape or sparsity differs from that of {folders[0].name}; load each folder "
                f"by itself"
            )
    joined = join_layers(layers, "plt")
    joined.provenance = layers[0].provenance
    return joined


def read_object(path: Path) -> dict[str, Any]:
    content = read_json(path, CONFIG_BYTES)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: want a JSON object")
    return content


def entry(config: JsonObject, key: str, kind: type, where: Path, default: Any = ...) -> Any:
    """config[key], which must be of that type; if it is absent or null, the default, if any."""
    value = config.get(key)
    if value is None and default is not ...:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: {key}={shown(value)}; want {kind.__name__}")
    return value


def refuse_unknown(config: JsonObject, known: str, where: Path) -> None:
    """Refuses unknown settings, of another version or a fork, as they may change the function.

    A setting that is off (null, false, empty, "none") is accepted.

    Args:
        known: the keys that are read or describe the training only, separated by spaces.
    """
    for key, value in config.items():
        off = value is None or value is False or value in ("", "none", [], {})
        if key not in known.split() and not off:
            raise ValueError(
                f"{where}: {shown(key)[1:-1]}={shown(value)} is unknown and may change what the "
                f"dictionary computes; if it doesn't, remove the key from a copy"
            )


def check_names(
    path: Path, tensors: Mapping[str, Tensor], required: Iterable[str], optional: Iterable[str] = ()
) -> None:
    """Raises ValueError unless a file has these tensors and no others."""
    if set(required) <= set(tensors) <= {*required, *optional}:
        return
    listed = ", ".join(ascii(name)[1:-1] for name in sorted(tensors)) or "none"
    wanted = ", ".join(required) + "".join(f", maybe {name}" for name in optional)
    raise ValueError(f"{path}: want tensors {wanted}; found {listed}")


def numbered_files(place: Path, name: re.Pattern[str]) -> list[Path]:
    """A file of this name, or those of a folder by their number, the pattern's group 1; maybe none."""
    if place.is_file():
        return [place] if name.fullmatch(place.name) else []
    paths = place.iterdir() if place.is_dir() else ()
    numbered = {int(m[1]): path for path in paths if (m := name.fullmatch(path.name))}
    return [numbered[number] for number in sorted(numbered)]


def dictlearn_sites(config: JsonObject) -> tuple[str, str] | None:
    """(source, target) from the entries that our own exporters add."""
    ours = config.get("dictlearn")
    if not isinstance(ours, dict):
        return None
    source, target = ours.get("source"), ours.get("target")
    return (source, target) if isinstance(source, str) and isinstance(target, str) else None


def dictlearn_model(config: JsonObject) -> str | None:
    """The model from the entries that our own exporters add."""
    ours = config.get("dictlearn")
    model = ours.get("model") if isinstance(ours, dict) else None
    return model if isinstance(model, str) else None


def match_in_path(place: Path, pattern: str) -> re.Match[str] | None:
    """The last match of a pattern in a path; folders of the hub's cache count as repositories.

    Several releases have model, site or k only in the names of repositories and folders.
    """
    path = re.sub("models--(.+?)--", r"\1/", place.absolute().as_posix())
    return next(iter(reversed(list(re.finditer(pattern, path)))), None)


def transposed(where: Path, matrix: Tensor) -> Tensor:
    """The transpose of W_enc or W_dec, for a format that stores it as [D, F]."""
    if matrix.ndim != 2:
        raise ValueError(f"{where}: W_enc or W_dec of shape {list(matrix.shape)}; want a matrix")
    return matrix.T.contiguous()


def _comparable(layer: Dictionary) -> dict[str, Any]:
    description = layer.to_json()
    return {
        key: value for key, value in description.items() if key not in ("sources", "targets", "k")
    }


def _has(folder: Path, files: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in files)


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key that sorts numbers in names by value: layers.9 before layers.10."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]
