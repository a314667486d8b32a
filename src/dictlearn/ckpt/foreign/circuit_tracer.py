"""Reads circuit-tracer's folders. `export/circuit_tracer.py` describes the layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from dictlearn.ckpt.files import read_header, read_tensors
from dictlearn.ckpt.foreign import gemma_scope, gemma_scope_2
from dictlearn.ckpt.foreign._hub import listed_file
from dictlearn.ckpt.foreign._layer import refuse_unknown
from dictlearn.ckpt.foreign._set import Layer, build_set, check_layer
from dictlearn.dicts.description import MOST_SITES, shown
from dictlearn.dicts.diagonal import Diagonal
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.linked import Lower
from dictlearn.disk.errors import content_error, error_text
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.sparsity.relu import ReLU
from dictlearn.sparsity.topk import TopK

CONFIG = "config.yaml"
CONFIG_BYTES = 1 << 20
FILES, OPTIONAL, LAYERS = (CONFIG,), ("*.safetensors",), False
KNOWN = """
    model_kind model_name feature_input_hook feature_output_hook scan transcoders activation k
    dictlearn revision dataset license description name author tags version
"""
KINDS = {"transcoder_set": "plt", "cross_layer_transcoder": "clt"}
SOURCES = {
    "mlp.hook_in": "mlp_in",
    "hook_resid_mid": "resid_mid",
    "ln2.hook_normalized": "mlp_norm",  # for Gemma 2, before the gain
}
TARGETS = {"mlp.hook_out": "mlp_out", "hook_mlp_out": "mlp_out"}
THRESHOLD = "activation_function.threshold"


def recognises(folder: Path) -> bool:
    path = folder / CONFIG
    if not path.is_file() or path.stat().st_size > CONFIG_BYTES:
        return False
    return b"model_kind:" in path.read_bytes()


def read(folder: Path) -> Dictionary:
    settings = read_config(folder / CONFIG)
    refuse_unknown(settings, KNOWN, folder / CONFIG)
    kind = settings.get("model_kind")
    if kind not in KINDS:
        raise ValueError(f"{folder / CONFIG}: model_kind={kind!r}; want one of {', '.join(KINDS)}")
    if settings.get("transcoders"):
        layers = read_listed(folder / CONFIG, settings["transcoders"], KINDS[kind])
    else:
        layers = read_transcoders(folder) if kind == "transcoder_set" else read_clt(folder)
    dictionary = _build(folder / CONFIG, settings, KINDS[kind], layers)
    model = settings.get("model_name")
    dictionary.provenance = {"format": "circuit_tracer", "model": model}
    return dictionary


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as yaml: {content_error(error)}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(error_text(error).split())
        raise ValueError(f"{path} is not readable as yaml: {reason}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{path}: want keys and values, as circuit-tracer writes")
    return config


def read_transcoders(folder: Path) -> list[Layer]:
    """The layers' tensors by our names: W_enc, b_enc, W_dec [F, 1, D], b_dec, threshold, W_skip."""
    layers = []
    for i in range(_count(folder, "layer")):
        path = folder / f"layer_{i}.safetensors"
        layer = _read_tensors(path)
        if "W_dec" in layer:
            layer["W_dec"] = layer["W_dec"].unsqueeze(1)
        check_layer(path, layer, layers[0] if layers else None, reach=1)
        layers.append(layer)
    return layers


def read_clt(folder: Path) -> list[Layer]:
    """The layers' tensors by our names, with W_dec [F, L - i, D] for layer i."""
    layers, n_layers = [], _count(folder, "W_enc")
    for i in range(n_layers):
        path = folder / f"W_enc_{i}.safetensors"
        tensors = read_tensors(path) | read_tensors(folder / f"W_dec_{i}.safetensors")
        layer = {name.removesuffix(f"_{i}"): tensor for name, tensor in tensors.items()}
        check_layer(path, layer, layers[0] if layers else None, reach=n_layers - i)
        layers.append(layer)
    return layers


def read_listed(where: Path, entries: object, kind: str) -> list[Layer]:
    """The layers' tensors from the files that config.yaml lists, also in Gemma Scope's layouts.

    Some published lists have their last file twice.
    """
    if not isinstance(entries, list) or not 1 <= len(entries) <= MOST_SITES:
        raise ValueError(f"{where}: transcoders={shown(entries)}; want a list of files")
    files = entries[:-1] if len(entries) > 1 and entries[-1] == entries[-2] else entries
    layers: list[Layer] = []
    for i, entry in enumerate(files):
        path = listed_file(where, entry)
        layer, reach = _read_tensors(path), 1 if kind == "plt" else len(files) - i
        if "W_dec" in layer and kind == "plt":
            layer["W_dec"] = layer["W_dec"].unsqueeze(1)
        elif "W_dec" in layer:
            layer["W_dec"] = gemma_scope_2.later_slots(path, layer["W_dec"], i, len(files))
        check_layer(path, layer, layers[0] if layers else None, reach)
        layers.append(layer)
    return layers


def _read_tensors(path: Path) -> Layer:
    """A file's tensors by our names; the layout is detected from the names in the file."""
    if path.suffix == ".npz":
        tensors = gemma_scope.read_params(path)
        return tensors | {"threshold": tensors.pop("raw_threshold_SF")}
    if "w_enc" in read_header(path):
        return gemma_scope_2.read_params(path)
    tensors = read_tensors(path)
    return {"threshold" if name == THRESHOLD else name: t for name, t in tensors.items()}


def _count(folder: Path, prefix: str) -> int:
    """The number of files <prefix>_<i>.safetensors, which must be numbered from 0."""
    pattern = re.compile(rf"{prefix}_(\d+)\.safetensors")
    numbers = sorted(int(m[1]) for p in folder.iterdir() if (m := pattern.fullmatch(p.name)))
    if not numbers or numbers != list(range(len(numbers))):
        raise ValueError(
            f"{folder}: want {prefix}_<i>.safetensors of every layer from 0; found {numbers}"
        )
    return len(numbers)


def _build(path: Path, settings: Mapping[str, Any], kind: str, layers: list[Layer]) -> Dictionary:
    n_features = len(layers[0]["W_enc"])
    k, sparsity = _sparsity(path, settings, n_features, "threshold" in layers[0])
    read_at = _site(path, settings, "feature_input_hook", SOURCES)
    write_at = _site(path, settings, "feature_output_hook", TARGETS)
    return build_set(
        kind,
        [f"{read_at}.{i}" for i in range(len(layers))],
        [f"{write_at}.{i}" for i in range(len(layers))],
        layers,
        k,
        sparsity,
        Diagonal() if kind == "plt" else Lower(),
    )


def _sparsity(
    path: Path, settings: Mapping[str, Any], n_features: int, thresholds: bool
) -> tuple[float, Any]:
    """(active features per token, the sparsity's constructor); without thresholds it is ReLU."""
    activation = settings.get("activation")
    if activation not in (None, "topk", "jumprelu" if thresholds else "relu"):
        raise ValueError(f"{path}: activation={shown(activation)}; want topk, or none")
    if activation == "topk":
        k = settings.get("k")
        if type(k) is not int or not 0 < k <= n_features:
            raise ValueError(f"{path}: k={k!r}; want 1 to {n_features} for activation topk")
        return k, partial(TopK, k=k)
    ours = settings.get("dictlearn")
    k = ours.get("k") if isinstance(ours, dict) else None
    if not isinstance(k, int | float) or not 0 < k <= n_features:  # also refuses NaN
        k = 1.0
    return float(k), JumpReLU if thresholds else ReLU


def _site(path: Path, settings: Mapping[str, Any], key: str, known: Mapping[str, str]) -> str:
    hook = settings.get(key)
    if not isinstance(hook, str) or hook not in known:
        raise ValueError(
            f"{path}: {key}={hook!r} is no site here; want one of {', '.join(sorted(known))}"
        )
    return known[hook]
