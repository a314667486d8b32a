"""Reads Gemma Scope 2 (Google DeepMind 2025, of Gemma 3): SAEs, transcoders, CLTs and crosscoders.

    resid_post/layer_22_width_65k_l0_medium/params.safetensors      also attn_out, mlp_out, transcoder
    clt/width_262k_l0_medium_affine/params_layer_0.safetensors, ... of every layer
    crosscoder/layer_7_13_17_22_width_262k_l0_medium/params_layer_0.safetensors, ... of four layers
    and config.json beside them, which some folders lack

        w_enc [D, F], b_enc [F], threshold [F], b_dec [D], w_dec [F, D]
        w_dec of one layer of several [F, L, D]: slot t writes to the t-th layer
        affine_skip_connection [D, D], maybe

        f = relu(x w_enc + b_enc) if that is above the threshold, else 0
        y = f w_dec + b_dec + x affine_skip_connection

The input is neither centred nor scaled. Transcoders read the output of the norm before the MLP with
its gain (mlp_in), and write the output of the second norm (mlp_out). CLTs and crosscoders are causal:
a layer's features write to its own layer and to later ones, and the slots of earlier layers are zero.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dictlearn.ckpt.files import check_numbers, read_tensors
from dictlearn.ckpt.foreign._layer import (
    build_layer,
    check_names,
    entry,
    match_in_path,
    read_object,
    transposed,
)
from dictlearn.ckpt.foreign._set import Layer, build_set, check_layer
from dictlearn.dicts.description import shown
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.linked import Lower
from dictlearn.sparsity.jumprelu import JumpReLU

CONFIG, WEIGHTS = "config.json", "params.safetensors"
FILES, OPTIONAL, LAYERS = ("params*.safetensors",), (CONFIG,), False
PART = re.compile(r"params_layer_(\d+)\.safetensors")
NAMES = {"w_enc": "W_enc", "w_dec": "W_dec", "b_enc": "b_enc", "b_dec": "b_dec"}
SKIP = "affine_skip_connection"
REPOSITORY = r"gemma-scope-2-(?P<size>\d+[mb])-(?P<tuned>pt|it)\b"
FOLDER = r"/(?P<part>resid_post|attn_out|mlp_out|transcoder|clt|crosscoder)(_all)?/"
LAYERS_OF = r"/layer_(\d+(?:_\d+)*)_width"
EARLIER = 1e-6  # times the largest decoder weight: the largest value in slots of earlier layers

MODULES = {  # their module of block L -> our site
    "": "resid_post.{L}",
    "post_feedforward_layernorm": "mlp_out.{L}",
    "pre_feedforward_layernorm": "mlp_in.{L}",
}
HEADS = "model.layers.{L}.self_attn.o_proj:input"
SITES = {  # folder -> (source, target)
    "resid_post": ("resid_post.{L}", "resid_post.{L}"),
    "attn_out": (HEADS, HEADS),
    "mlp_out": ("mlp_out.{L}", "mlp_out.{L}"),
    "transcoder": ("mlp_in.{L}", "mlp_out.{L}"),
    "clt": ("mlp_in.{L}", "mlp_out.{L}"),
    "crosscoder": ("resid_post.{L}", "resid_post.{L}"),
}


def recognises(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / "params_layer_0.safetensors").is_file()


def read(folder: Path) -> Dictionary:
    where = folder / CONFIG
    cfg = read_object(where) if where.is_file() else {}
    # Other entries (width, l0, type) follow from the tensors or don't change the function.
    architecture = entry(cfg, "architecture", str, where, "jump_relu")
    if architecture != "jump_relu":
        raise ValueError(f"{where}: architecture={shown(architecture)}; want jump_relu")
    dictionary = (
        _read_layer(folder, cfg) if (folder / WEIGHTS).is_file() else _read_set(folder, cfg)
    )
    dictionary.provenance = {"format": "gemma_scope_2", "model": _model(folder, cfg)}
    return dictionary.eval().requires_grad_(False)


def read_params(path: Path) -> dict[str, Tensor]:
    """A file's tensors by our names, with threshold [F], in our layout."""
    tensors = read_tensors(path)
    check_names(path, tensors, (*NAMES, "threshold"), (SKIP,))
    check_numbers(path, tensors)
    ours = {our: tensors[their] for their, our in NAMES.items()}
    ours["W_enc"] = transposed(path, ours["W_enc"])
    ours["threshold"] = tensors["threshold"].clamp_min(0)  # relu makes a negative one equal to zero
    if SKIP in tensors:
        ours["W_skip"] = transposed(path, tensors[SKIP])
    return ours


def later_slots(path: Path, W_dec: Tensor, layer: int, n_layers: int) -> Tensor:
    """The slots [F, reach, D] of a layer and later ones. Raises ValueError if earlier ones are used."""
    if W_dec.ndim != 3 or W_dec.shape[1] != n_layers:
        raise ValueError(
            f"{path}: w_dec has shape {list(W_dec.shape)}; want [features, {n_layers}, width], as there "
            f"are files of {n_layers} layers"
        )
    earlier = W_dec[:, :layer]
    if earlier.numel() and earlier.abs().max() > EARLIER * W_dec.abs().max():
        raise ValueError(
            f"{path}: its features write to layers before their own, which CLTs and crosscoders "
            f"don't have here"
        )
    return W_dec[:, layer:]


def _read_layer(folder: Path, cfg: Mapping[str, Any]) -> Dictionary:
    tensors = read_params(folder / WEIGHTS)
    tensors["raw_threshold_SF"] = tensors.pop("threshold")
    source, target = _sites(folder, cfg)
    return build_layer(
        folder / WEIGHTS,
        tensors,
        source=source,
        target=target,
        sparsity={"name": "jumprelu"},
        training={},
    )


def _read_set(folder: Path, cfg: Mapping[str, Any]) -> Dictionary:
    match = match_in_path(folder / "x", FOLDER)
    part = match["part"] if match else entry(cfg, "type", str, folder / CONFIG, None)
    if part not in ("clt", "crosscoder"):
        raise ValueError(
            f"{folder}: want a folder in clt/ or crosscoder/, as in the repository, or type=clt or "
            f"crosscoder in {CONFIG}"
        )
    numbers = sorted(int(m[1]) for p in folder.iterdir() if (m := PART.fullmatch(p.name)))
    layers: list[Layer] = []
    for i in range(len(numbers)):
        path = folder / f"params_layer_{i}.safetensors"
        layer = read_params(path)
        layer["W_dec"] = later_slots(path, layer["W_dec"], i, len(numbers))
        check_layer(path, layer, layers[0] if layers else None, reach=len(numbers) - i)
        layers.append(layer)
    named = match_in_path(folder, LAYERS_OF)
    blocks = named[1].split("_") if named and part == "crosscoder" else [str(i) for i in numbers]
    if len(blocks) != len(layers) or (part == "crosscoder" and not named):
        raise ValueError(
            f"{folder}: has files of {len(layers)} layers, but its name doesn't list the layers; "
            f"want a name such as layer_7_13_17_22_width_65k_l0_medium"
        )
    read_at, write_at = SITES[part]
    return build_set(
        part,
        [read_at.format(L=block) for block in blocks],
        [write_at.format(L=block) for block in blocks],
        layers,
        1.0,
        JumpReLU,
        Lower(),
    )


def _sites(folder: Path, cfg: Mapping[str, Any]) -> tuple[str, str]:
    """(source, target) from config.json, or else from the names of the folders."""
    where = folder / CONFIG
    hook = entry(cfg, "hf_hook_point_in", str, where, None)
    if hook is not None:
        source = site_of(hook)
        out = entry(cfg, "hf_hook_point_out", str, where, None)
        return source, site_of(out) if out else source
    part, layer = match_in_path(folder / "x", FOLDER), match_in_path(folder, LAYERS_OF)
    if part is None or layer is None:
        return "unknown:output", "unknown:output"
    read_at, write_at = SITES[part["part"]]
    return read_at.format(L=layer[1]), write_at.format(L=layer[1])


def site_of(hook: str) -> str:
    """Our site for a hook such as `model.layers.22.post_feedforward_layernorm.output`."""
    match = re.fullmatch(r"model\.layers\.(\d+)\.?(.*)\.output", hook)
    if match and match[2] in MODULES:
        return MODULES[match[2]].format(L=match[1])
    path, _, end = hook.rpartition(".")
    return f"{path}:{end}"


def _model(folder: Path, cfg: Mapping[str, Any]) -> str | None:
    """The model's hub id; that of the pretrained 270M model has no suffix."""
    name = entry(cfg, "model_name", str, folder / CONFIG, None)
    repository = match_in_path(folder, REPOSITORY)
    if name is None and repository:
        name = f"gemma-3-{repository['size']}-{repository['tuned']}"
    if name is None:
        return None
    name = name.removeprefix("google/").replace("gemma-v3", "gemma-3")
    return "google/" + (name.removesuffix("-pt") if "270m" in name else name)
