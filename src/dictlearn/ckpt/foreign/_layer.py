"""What most formats hold: one source, one target; several of them are a folder each."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictlearn.ckpt.files import check_numbers, read_json
from dictlearn.dicts.description import from_json, shown
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import join_layers

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
        tensors: W_enc [F, D], b_enc [F], W_dec [F, D], b_dec [D] and, where it has them, W_skip
            [D, D] and the sparsity's own, [F] each, by their names in our state dict.
        sparsity: its name and options, as in dictionary.json.
        k: features per token; None where the file doesn't say, and nothing depends on it.
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
                f"features of width {width}; want {list(shape)}, one width for what is read and "
                f"written"
            )
    return n_features, width


def layer_folders(folder: Path, files: tuple[str, ...]) -> list[Path]:
    """The folder itself where it has these files, else its subfolders with them, in layer order."""
    if _has(folder, files):
        return [folder]
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _has(path, files)), key=_natural)


def read_layers(folders: list[Path], read_one: Callable[[Path], Dictionary]) -> Dictionary:
    """One dictionary of all: itself where it is alone, else per-layer ones side by side."""
    layers = [read_one(folder) for folder in folders]
    if len(layers) == 1:
        return layers[0]
    first = _comparable(layers[0])
    for path, layer in zip(folders, layers, strict=True):
        if _comparable(layer) != first:
            raise ValueError(
                f"{path}: not of the shape and sparsity of {folders[0].name} next to it; load each "
                f"alone by its own folder"
            )
    whole = join_layers(layers, "plt")
    whole.provenance = layers[0].provenance
    return whole


def read_object(path: Path) -> dict[str, Any]:
    found = read_json(path, CONFIG_BYTES)
    if not isinstance(found, dict):
        raise ValueError(f"{path}: want a JSON object")
    return found


def entry(found: JsonObject, key: str, kind: type, where: Path, default: Any = ...) -> Any:
    """found[key], which must be of that type; absent, or null, the default where there is one."""
    value = found.get(key)
    if value is None and default is not ...:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where}: {key}={shown(value)}; want {kind.__name__}")
    return value


def refuse_unknown(found: JsonObject, known: str, where: Path) -> None:
    """A setting of another version, or of a fork, may change what is computed: it is not ignored.

    One that is off (null, false, empty, "none") changes nothing.

    Args:
        known: keys that are read, or that say how it was trained and not what it computes; words.
    """
    for key, value in found.items():
        off = value is None or value is False or value in ("", "none", [], {})
        if key not in known.split() and not off:
            raise ValueError(
                f"{where}: {shown(key)[1:-1]}={shown(value)} is not known here and may change what the "
                f"dictionary computes; take the key out of a copy if it doesn't"
            )


def sites_said(found: JsonObject) -> tuple[str, str] | None:
    """(source, target) as our own exporters write them beside what the format asks for."""
    ours = found.get("dictlearn")
    if not isinstance(ours, dict):
        return None
    source, target = ours.get("source"), ours.get("target")
    return (source, target) if isinstance(source, str) and isinstance(target, str) else None


def model_said(found: JsonObject) -> str | None:
    """The model, where the format has no place for it and our own exporter wrote it."""
    ours = found.get("dictlearn")
    model = ours.get("model") if isinstance(ours, dict) else None
    return model if isinstance(model, str) else None


def said_by_path(place: Path, pattern: str) -> re.Match[str] | None:
    """The last match of a pattern in the path of what is read; the hub's cache counts as the hub.

    Several releases say model, site or k in no file, but in the names of repository and folders.
    """
    path = re.sub("models--(.+?)--", r"\1/", place.absolute().as_posix())
    return next(iter(reversed(list(re.finditer(pattern, path)))), None)


def turned(where: Path, matrix: Tensor) -> Tensor:
    """A matrix that the format stores the other way round."""
    if matrix.ndim != 2:
        raise ValueError(f"{where}: W_enc or W_dec of shape {list(matrix.shape)}; want a matrix")
    return matrix.T.contiguous()


def _comparable(layer: Dictionary) -> dict[str, Any]:
    same = layer.to_json()
    return {key: value for key, value in same.items() if key not in ("sources", "targets", "k")}


def _has(folder: Path, files: tuple[str, ...]) -> bool:
    return all((folder / name).is_file() for name in files)


def _natural(path: Path) -> list[tuple[int, str]]:
    """Numbers within a name in the order of numbers: layers.9 before layers.10."""
    pieces = re.split(r"(\d+)", path.name)
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in pieces]
