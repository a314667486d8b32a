"""Reads SAEs and transcoders of OpenMOSS's library, such as Llama Scope R1 Distill.

    800M-Slimpajama-0-OpenR1-Math-220k/L15R/config.json, .../sae_weights.safetensors
        encoder.weight [F, D], encoder.bias, decoder.weight [D, F], decoder.bias; or in later
        versions W_E [D, F], b_E, W_D [F, D], b_D
        (activation_function.)log_jumprelu_threshold [F]
        dataset_average_activation_norm.<in or out, or the hook>

        s_in, s_out = sqrt(D) / mean norm of the input activations, and of the output activations
        h = W_enc (s_in x) + b_enc
        f = h if h |W_dec| is above the threshold, or is one of the k largest (act_fn, top_k), else 0
        s_out y = W_dec f + b_dec

|W_dec| is the norm of the feature's decoder vector if sparsity_include_decoder_norm is true, else 1.
s_in and s_out are 1 if norm_activation is `inference`. No file names the model. `llama_scope` reads the
first release, whose files have other names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dictlearn.ckpt.files import check_numbers, read_tensors
from dictlearn.ckpt.foreign._layer import (
    build_layer,
    check_names,
    entry,
    match_in_path,
    read_object,
    scales,
    transposed,
)
from dictlearn.dicts.description import shown
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.other_names import site_of_hook

CONFIG, WEIGHTS = "config.json", "sae_weights.safetensors"
FILES, OPTIONAL, LAYERS = (CONFIG, WEIGHTS), (), False
NORM = "dataset_average_activation_norm"
LINEAR = {
    "encoder.weight": "W_enc",
    "encoder.bias": "b_enc",
    "decoder.weight": "W_dec",
    "decoder.bias": "b_dec",
}
MATRICES = {"W_E": "W_enc", "b_E": "b_enc", "W_D": "W_dec", "b_D": "b_dec"}
THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")
MODELS = {  # part of a folder's name -> model
    "Llama3_1-8B-Base": "meta-llama/Llama-3.1-8B",
    "Llama-Scope-R1-Distill": "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
}
SMALLEST = 1e-8  # lower bound of a decoder vector's norm
CODES = ("relu", "topk", "jumprelu")


def recognises(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() and (folder / CONFIG).is_file()


def read(folder: Path) -> Dictionary:
    where, path = folder / CONFIG, folder / WEIGHTS
    cfg = read_object(where)
    if entry(cfg, "sae_type", str, where, "sae") != "sae":
        raise ValueError(f"{where}: sae_type={shown(cfg['sae_type'])}; want sae")
    tensors = read_tensors(path)
    log = next((tensors.pop(name) for name in THRESHOLDS if name in tensors), None)
    norms = {
        name.removeprefix(f"{NORM}."): float(tensors.pop(name))
        for name in [name for name in tensors if name.startswith(f"{NORM}.")]
        if tensors[name].numel() == 1
    }
    return build_openmoss(
        where, cfg, path, tensors, norms, None if log is None else log.float().exp()
    )


def build_openmoss(
    where: Path,
    cfg: Mapping[str, Any],
    path: Path,
    stored: Mapping[str, Tensor],
    norms: Mapping[str, float],
    threshold: Tensor | None,
    raw: bool = False,
) -> Dictionary:
    """The dictionary of one folder.

    Args:
        stored: the tensors by their names in the file.
        norms: the mean norms of inputs and outputs, by "in" and "out" or by hook.
        threshold: one per feature, or one for all; None if there is none.
        raw: whether the threshold is in units of raw activations.
    """
    tensors = _renamed(path, stored)
    read_at = entry(cfg, "hook_point_in", str, where)
    write_at = entry(cfg, "hook_point_out", str, where, read_at)
    act_fn = entry(cfg, "act_fn", str, where, "relu").lower()
    if entry(cfg, "use_glu_encoder", bool, where, False):
        raise ValueError(f"{where}: use_glu_encoder=true: its encoder is not linear")
    if act_fn not in CODES:
        raise ValueError(
            f"{where}: act_fn={shown(act_fn)}; want {', '.join(CODES)}; OpenMOSS's own tool "
            f"converts a topk over batches or layers to jumprelu"
        )
    scale_in, scale_out = (
        _scale(where, cfg, norms, end, hook, tensors["W_dec"].shape[1])
        for end, hook in (("in", read_at), ("out", write_at))
    )
    centre = entry(cfg, "apply_decoder_bias_to_pre_encoder", bool, where, False)
    if centre and scale_in != scale_out:
        key = "apply_decoder_bias_to_pre_encoder"
        raise ValueError(f"{where}: {key}=true, but the scales of input and output differ")
    weighted = entry(cfg, "sparsity_include_decoder_norm", bool, where, True)
    norms_F = tensors["W_dec"].norm(dim=-1).clamp_min(SMALLEST)
    norms_F = norms_F if weighted else torch.ones_like(norms_F)
    k = entry(cfg, "top_k", int, where) if act_fn == "topk" else None
    if act_fn == "topk":  # selects by h |W_dec|, so features get decoder norm 1
        tensors["W_enc"] = tensors["W_enc"] * norms_F[:, None]
        tensors["b_enc"] = tensors["b_enc"] * norms_F
        tensors["W_dec"] = tensors["W_dec"] / norms_F[:, None]
    if act_fn == "jumprelu":
        scale = scale_out if raw else 1.0
        tensors["raw_threshold_SF"] = _thresholds(path, threshold, norms_F, scale)
    tensors["W_enc"] = tensors["W_enc"] * scale_in
    tensors["W_dec"], tensors["b_dec"] = tensors["W_dec"] / scale_out, tensors["b_dec"] / scale_out
    return build_layer(
        path,
        tensors,
        source=site_of_hook(read_at),
        target=site_of_hook(write_at),
        sparsity={"name": act_fn} | ({"k": k} if act_fn == "topk" else {}),
        k=k,
        centre=centre,
        training={"format": "openmoss", "model": _model(where), **scales(scale_in, scale_out)},
    )


def _thresholds(path: Path, threshold: Tensor | None, norms_F: Tensor, scale: float) -> Tensor:
    """Thresholds of the pre-activations, [F]."""
    if threshold is None or threshold.numel() not in (1, len(norms_F)):
        raise ValueError(
            f"{path}: act_fn=jumprelu, but there is no threshold for its {len(norms_F)} features"
        )
    return threshold.float().clamp_min(0).flatten() * scale / norms_F


def _renamed(path: Path, stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by our names, in float32 and in our layout."""
    names = LINEAR if "encoder.weight" in stored else MATRICES
    *required, decoder_bias = names
    check_names(path, stored, required, (decoder_bias,))
    check_numbers(path, stored)
    ours = {our: stored[their].float() for their, our in names.items() if their in stored}
    matrix = "W_dec" if names is LINEAR else "W_enc"
    ours[matrix] = transposed(path, ours[matrix])
    decoder, encoder, bias = (list(ours[name].shape) for name in ("W_dec", "W_enc", "b_enc"))
    if len(decoder) != 2 or 0 in decoder or encoder != decoder or bias != decoder[:1]:
        raise ValueError(
            f"{path}: decoder, encoder and its bias have shapes {decoder}, {encoder} and {bias}; want "
            f"[features, width] twice, and [features]"
        )
    return {"b_dec": ours["W_dec"].new_zeros(decoder[1]), **ours}


def _scale(
    where: Path, cfg: Mapping[str, Any], norms: Mapping[str, float], end: str, hook: str, width: int
) -> float:
    """The factor by which training multiplied the activations."""
    convention = entry(cfg, "norm_activation", str, where, "dataset-wise")
    if convention in ("inference", "none"):
        return 1.0
    if convention != "dataset-wise":
        raise ValueError(
            f"{where}: norm_activation={shown(convention)} depends on each token and cannot be part of "
            f"the weights; want dataset-wise or inference"
        )
    norm = norms.get(hook, norms.get(end))
    if norm is None or not (math.isfinite(norm) and norm > 0):
        raise ValueError(
            f"{where}: norm_activation=dataset-wise, but {NORM} is {shown(norm)} for {shown(hook)}; "
            f"want a positive number"
        )
    return math.sqrt(width) / norm


def _model(where: Path) -> str | None:
    return next((MODELS[word] for word in MODELS if match_in_path(where, word)), None)
