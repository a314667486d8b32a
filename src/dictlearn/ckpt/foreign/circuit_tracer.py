"""Reads circuit-tracer's folders; `export/circuit_tracer.py` describes the layout."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from dictlearn.ckpt.files import check_numbers, read_tensors
from dictlearn.ckpt.foreign._layer import refuse_unknown
from dictlearn.dicts.description import shown
from dictlearn.dicts.diagonal import Diagonal
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.linked import Lower
from dictlearn.dicts.shape import Shape
from dictlearn.disk.errors import content_error, error_text
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.sparsity.relu import ReLU
from dictlearn.sparsity.topk import TopK

CONFIG = "config.yaml"
CONFIG_BYTES = 1 << 20
FILES, OPTIONAL, LAYERS = (CONFIG, "*.safetensors"), (), False
KNOWN = """
    model_kind model_name feature_input_hook feature_output_hook scan transcoders activation k
    dictlearn revision dataset license description name author tags version
"""
KINDS = {"transcoder_set": "plt", "cross_layer_transcoder": "clt"}
SOURCES = {"mlp.hook_in": "mlp_in", "hook_resid_mid": "resid_mid"}
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
        raise ValueError(
            f"{folder / CONFIG}: its transcoders lie elsewhere ({settings['transcoders']}); want "
            f"layer_<i>.safetensors in this folder"
        )
    layers = read_transcoders(folder) if kind == "transcoder_set" else read_clt(folder)
    dictionary = _build(folder / CONFIG, settings, KINDS[kind], layers)
    model = settings.get("model_name")
    dictionary.provenance = {"format": "circuit_tracer", "model": model}
    return dictionary


def read_config(path: Path) -> dict[str, Any]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not readable as yaml: {content_error(error)}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(error_text(error).split())
        raise ValueError(f"{path} is not readable as yaml: {reason}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: want keys and values, as circuit-tracer writes")
    return found


def read_transcoders(folder: Path) -> list[dict[str, Tensor]]:
    """Each layer's tensors by our names: W_enc, b_enc, W_dec [F, 1, D], b_dec, threshold, W_skip."""
    layers = []
    for i in range(_count(folder, "layer")):
        path = folder / f"layer_{i}.safetensors"
        found = read_tensors(path)
        if THRESHOLD in found:
            found["threshold"] = found.pop(THRESHOLD)
        if "W_dec" in found:
            found["W_dec"] = found["W_dec"].unsqueeze(1)
        _check(path, found, layers[0] if layers else None, reach=1)
        layers.append(found)
    return layers


def read_clt(folder: Path) -> list[dict[str, Tensor]]:
    """The same, with W_dec [F, L - i, D] of layer i."""
    layers, n_layers = [], _count(folder, "W_enc")
    for i in range(n_layers):
        path = folder / f"W_enc_{i}.safetensors"
        named = read_tensors(path) | read_tensors(folder / f"W_dec_{i}.safetensors")
        found = {name.removesuffix(f"_{i}"): tensor for name, tensor in named.items()}
        _check(path, found, layers[0] if layers else None, reach=n_layers - i)
        layers.append(found)
    return layers


def _count(folder: Path, prefix: str) -> int:
    """How many <prefix>_<i>.safetensors there are, which must be numbered from 0."""
    pattern = re.compile(rf"{prefix}_(\d+)\.safetensors")
    numbers = sorted(int(m[1]) for p in folder.iterdir() if (m := pattern.fullmatch(p.name)))
    if not numbers or numbers != list(range(len(numbers))):
        raise ValueError(
            f"{folder}: want {prefix}_<i>.safetensors of every layer from 0; found {numbers}"
        )
    return len(numbers)


def _check(
    path: Path, found: Mapping[str, Tensor], first: Mapping[str, Tensor] | None, reach: int
) -> None:
    """Shapes that fit each other and the first layer's; numbers, all of them finite."""
    needed = {"W_enc", "b_enc", "W_dec", "b_dec"}
    names = set(found)
    if not needed <= names or not names <= needed | {"threshold", "W_skip"}:
        raise ValueError(
            f"{path}: want tensors {', '.join(sorted(needed))} and maybe a threshold and W_skip; "
            f"found {', '.join(sorted(names)) or 'none'}"
        )
    W_enc = found["W_enc"]
    if W_enc.ndim != 2 or 0 in W_enc.shape:
        raise ValueError(f"{path}: W_enc has shape {list(W_enc.shape)}; want [features, width]")
    features, width = W_enc.shape
    if first is not None and (names != set(first) or W_enc.shape != first["W_enc"].shape):
        raise ValueError(f"{path}: its tensors are not those of the first layer")
    wanted = {
        "b_enc": [features],
        "W_dec": [features, reach, width],
        "b_dec": [width],
        "threshold": [features],
        "W_skip": [width, width],
    }
    for name, tensor in found.items():
        if name != "W_enc" and list(tensor.shape) != wanted[name]:
            raise ValueError(f"{path}: {name} has shape {list(tensor.shape)}; want {wanted[name]}")
    check_numbers(path, found)
    if "threshold" in found and bool((found["threshold"] < 0).any()):
        raise ValueError(f"{path}: a threshold is negative, and features here are positive")


@torch.no_grad()
def _build(
    path: Path, settings: Mapping[str, Any], kind: str, layers: list[dict[str, Tensor]]
) -> Dictionary:
    n_layers, (n_features, width) = len(layers), layers[0]["W_enc"].shape
    k, sparsity = _sparsity(path, settings, n_features, "threshold" in layers[0])
    read_at = _site(path, settings, "feature_input_hook", SOURCES)
    write_at = _site(path, settings, "feature_output_hook", TARGETS)
    shape = Shape(
        kind=kind,
        sources=tuple(f"{read_at}.{i}" for i in range(n_layers)),
        targets=tuple(f"{write_at}.{i}" for i in range(n_layers)),
        width=width,
        n_features=n_features,
        k=k,
        skip="W_skip" in layers[0],
        unit_norm=False,
        link=Diagonal() if kind == "plt" else Lower(),
    )
    dictionary = Dictionary(shape, sparsity)
    decoder = dictionary.decoder
    for i, layer in enumerate(layers):
        dictionary.encoder.W_enc[i] = layer["W_enc"]
        dictionary.encoder.b_enc[i] = layer["b_enc"]
        decoder.b_dec[i] = layer["b_dec"]
        for target, rows_FD in enumerate(layer["W_dec"].unbind(1), start=i):
            decoder.written(target, i, slice(None)).copy_(rows_FD)  # a view, of these two links
        if dictionary.W_skip is not None:
            dictionary.W_skip[i] = layer["W_skip"]
        if dictionary.sparsity.name == "jumprelu":
            dictionary.get_parameter("sparsity.raw_threshold_SF")[i] = layer["threshold"]
    return dictionary


def _sparsity(
    path: Path, settings: Mapping[str, Any], n_features: int, thresholds: bool
) -> tuple[float, Any]:
    """(active features per token, how to build the sparsity). Without thresholds it is ReLU."""
    activation = settings.get("activation")
    if activation not in (None, "topk", "jumprelu" if thresholds else "relu"):
        raise ValueError(f"{path}: activation={shown(activation)}; want topk, or none")
    if activation == "topk":
        k = settings.get("k")
        if type(k) is not int or not 0 < k <= n_features:
            raise ValueError(f"{path}: k={k!r}; want 1 to {n_features} for activation topk")
        return k, partial(TopK, k=k)
    ours = settings.get("dictlearn")
    said = ours.get("k") if isinstance(ours, dict) else None
    if not isinstance(said, int | float) or not 0 < said <= n_features:  # NaN is neither
        said = 1.0
    return float(said), JumpReLU if thresholds else ReLU


def _site(path: Path, settings: Mapping[str, Any], key: str, known: Mapping[str, str]) -> str:
    hook = settings.get(key)
    if not isinstance(hook, str) or hook not in known:
        raise ValueError(
            f"{path}: {key}={hook!r} is no site here; want one of {', '.join(sorted(known))}"
        )
    return known[hook]
