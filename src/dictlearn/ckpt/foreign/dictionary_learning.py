"""Reads dictionary_learning's folders; `export/dictionary_learning.py` describes the layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from dictlearn.ckpt.files import check_numbers
from dictlearn.ckpt.foreign._layer import (
    build_layer,
    check_names,
    dictlearn_sites,
    entry,
    layer_folders,
    read_layers,
    read_object,
    refuse_unknown,
    transposed,
)
from dictlearn.ckpt.foreign._state import read_state
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import renormed

CONFIG, WEIGHTS = "config.json", "ae.pt"
FILES, OPTIONAL, LAYERS = (CONFIG, WEIGHTS), (), True

LINEAR = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "decoder.weight": "W_dec"}
MATRICES = {"W_enc": "W_enc", "b_enc": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
TENSORS = {  # by class: their name of a tensor -> ours
    "AutoEncoder": LINEAR | {"bias": "b_dec"},
    "AutoEncoderNew": LINEAR | {"decoder.bias": "b_dec"},
    "AutoEncoderTopK": LINEAR | {"b_dec": "b_dec"},
    "BatchTopKSAE": LINEAR | {"b_dec": "b_dec", "threshold": "raw_threshold_SF"},
    "JumpReluAutoEncoder": MATRICES | {"threshold": "raw_threshold_SF"},
    "MatryoshkaBatchTopKSAE": MATRICES | {"threshold": "raw_threshold_SF"},
    "GatedAutoEncoder": {
        "encoder.weight": "W_enc",
        "gate_bias": "b_enc",
        "r_mag": "r_SF",
        "mag_bias": "b_mag_SF",
        "decoder.weight": "W_dec",
        "decoder_bias": "b_dec",
    },
}
SPARSITIES = {
    "AutoEncoder": "relu",
    "AutoEncoderNew": "relu",
    "AutoEncoderTopK": "topk",
    "BatchTopKSAE": "jumprelu",  # encodes by its threshold, where it isn't training
    "JumpReluAutoEncoder": "jumprelu",
    "MatryoshkaBatchTopKSAE": "jumprelu",
    "GatedAutoEncoder": "gated",
}
UNCENTRED = ("AutoEncoderNew", "JumpReluAutoEncoder")  # these don't subtract b_dec from the input
TRAINER = """
    trainer_class dict_class activation_dim dict_size layer lm_name submodule_name wandb_name
    device seed steps lr k l1_penalty warmup_steps sparsity_warmup_steps resample_steps
    decay_start auxk_alpha threshold_beta threshold_start_step top_k_aux k_anneal_steps
    group_fractions group_weights group_sizes bandwidth sparsity_penalty sparsity_coefficient
    target_l0 dead_feature_threshold lp_norm p_start p_end anneal_start anneal_end
    sparsity_function n_sparsity_updates sparsity_queue_length initial_l0 l0_penalty
    ghost_threshold steps_between_resample lambda_s
"""
BUFFER = """
    d_submodule io n_ctxs ctx_len refresh_batch_size out_batch_size device dataset remove_bos
    add_special_tokens
"""
BESIDE = {"k", "threshold", "group_sizes"}  # buffers that some versions have and others don't


def recognises(folder: Path) -> bool:
    return bool(layer_folders(folder, (CONFIG, WEIGHTS)))


def read(folder: Path) -> Dictionary:
    return read_layers(layer_folders(folder, (CONFIG, WEIGHTS)), _read_one)


def _read_one(folder: Path) -> Dictionary:
    where, path = folder / CONFIG, folder / WEIGHTS
    cfg = read_object(where)
    trainer, buffer = entry(cfg, "trainer", dict, where), entry(cfg, "buffer", dict, where, {})
    refuse_unknown(trainer, TRAINER, where)
    refuse_unknown(buffer, BUFFER, where)
    refuse_unknown(cfg, "trainer buffer dictlearn", where)
    name = entry(trainer, "dict_class", str, where)
    if name not in TENSORS:
        raise ValueError(f"{where}: dict_class={name}; want one of {', '.join(TENSORS)}")
    tensors = read_state(path)
    k = int(tensors["k"]) if "k" in tensors else entry(trainer, "k", int, where, None)
    if name == "AutoEncoderTopK" and k is None:
        raise ValueError(f"{where}: has no k, and neither has {WEIGHTS}")
    source, target = dictlearn_sites(cfg) or _sites(trainer, buffer, where)
    dictionary = build_layer(
        where,
        _renamed(path, tensors, name),
        source=source,
        target=target,
        sparsity={"name": SPARSITIES[name]} | ({"k": k} if SPARSITIES[name] == "topk" else {}),
        k=k,
        centre=name not in UNCENTRED,
        prefixes=tuple(tensors["group_sizes"].cumsum(0).tolist())
        if "group_sizes" in tensors
        else (),
        training={"format": "dictionary_learning", "model": entry(trainer, "lm_name", str, where)},
    )
    if name != "AutoEncoder":
        return dictionary
    scaled = renormed(dictionary)  # as their loader does, for this class only
    scaled.provenance = dictionary.provenance
    return scaled


def _renamed(path: Path, tensors: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """The file's tensors by our names, in our layout."""
    names = TENSORS[name]
    check_names(path, tensors, names, sorted(BESIDE))
    check_numbers(path, {their: tensors[their] for their in names})
    ours = {our: tensors[their].float() for their, our in names.items()}
    matrix = "W_dec" if "encoder.weight" in names else "W_enc"
    ours[matrix] = transposed(path, ours[matrix])
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):  # one threshold; -1 if it was never set
        n_features = len(ours["W_enc"])
        ours["raw_threshold_SF"] = ours["raw_threshold_SF"].clamp_min(0).expand(n_features)
    return ours


def _sites(trainer: dict[str, Any], buffer: dict[str, Any], where: Path) -> tuple[str, str]:
    """(source, target), by default the output of the submodule."""
    layer = entry(trainer, "layer", int, where, 0)
    module = entry(trainer, "submodule_name", str, where, None) or f"resid_post_layer_{layer}"
    named = re.fullmatch(r"(resid_pre|resid_mid|resid_post|attn_out|mlp_out)_layer_(\d+)", module)
    site = f"{named[1]}.{named[2]}" if named else f"{module}:output"
    io = entry(buffer, "io", str, where, "out")
    if io == "out":
        return site, site
    return f"{module}:input", site if io == "in_and_out" else f"{module}:input"
