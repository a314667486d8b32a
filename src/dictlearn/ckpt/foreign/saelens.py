"""Reads SAELens' folders; `export/saelens.py` describes the layout.

Those of SAELens 6 and, with their keys still flat, older ones. A folder whose subfolders are
transcoders of one shape is read as one dictionary, a layer each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dictlearn.ckpt.files import check_numbers, read_tensors
from dictlearn.ckpt.foreign._layer import (
    build_layer,
    check_names,
    dictlearn_sites,
    entry,
    layer_folders,
    read_layers,
    read_object,
    refuse_unknown,
    scales,
    transposed,
)
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.other_names import site_of_hook
from dictlearn.lm.sites import STANDARDISED

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
FILES, OPTIONAL, LAYERS = (CONFIG, WEIGHTS), (SCALER,), True

SPARSITIES = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "gated": "gated",
    "transcoder": "relu",
    "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "jumprelu_skip_transcoder": "jumprelu",
}
KNOWN = """
    architecture d_in d_sae d_out dtype device apply_b_dec_to_input normalize_activations
    reshape_activations metadata k rescale_acts_by_decoder_norm decoder_init_norm l1_coefficient
    lp_norm l1_warm_up_steps l0_coefficient l0_warm_up_steps jumprelu_init_threshold
    jumprelu_bandwidth jumprelu_sparsity_loss_mode jumprelu_tanh_scale pre_act_loss_coefficient
    aux_loss_coefficient mse_loss_normalization topk_threshold_lr matryoshka_widths
    use_sparse_activations model_name model_class_name model_from_pretrained_kwargs hook_name
    hook_name_out hook_layer hook_layer_out hook_head_index hook_point_layer
    hook_point_head_index hook_eval prepend_bos exclude_special_tokens context_size seqpos_slice
    dataset_path dataset_trust_remote_code is_dataset_tokenized streaming use_cached_activations
    cached_activations_path neuronpedia_id sae_lens_version sae_lens_training_version
    training_tokens l0 dictlearn activation_fn activation_fn_kwargs finetuning_scaling_factor
    from_pretrained_path sae_class_name version n_batches_in_buffer total_training_tokens
    store_batch_size store_batch_size_prompts train_batch_size train_batch_size_tokens seed
    b_dec_init_method expansion_factor lr lr_end lr_scheduler_name lr_warm_up_steps
    lr_decay_steps n_restart_cycles adam_beta1 adam_beta2 use_ghost_grads
    feature_sampling_window feature_sampling_method resample_batches feature_reinit_scale
    dead_feature_window dead_feature_estimation_method dead_feature_threshold log_to_wandb
    wandb_project wandb_entity wandb_id run_name wandb_log_frequency n_checkpoints
    checkpoint_path tokens_per_buffer noise_scale decoder_orthogonal_init decoder_heuristic_init
    decoder_heuristic_init_norm init_encoder_as_decoder_transpose normalize_sae_decoder
    scale_sparsity_penalty_by_decoder_norm finetuning_tokens finetuning_method verbose
    eval_batch_size_prompts eval_every_n_wandb_logs n_eval_batches
    log_activations_store_to_wandb log_optimizer_state_to_wandb act_store_device autocast
    autocast_lm compile_llm llm_compilation_mode compile_sae sae_compilation_mode
    jumprelu_ste_to_input target_l0 use_matryoshka_aux_loss activations_mixing_fraction
    disable_concat_sequences sequence_separator_token use_chat_formatting llm_device logger
    prefetch_llm_batches n_batches_for_norm_estimate total_training_samples
    train_batch_size_samples output_path resume_from_checkpoint save_final_checkpoint
"""
REFUSED = {
    "abstopk": "its features may be negative, and no layout is known here to read them by",
    "matching_pursuit": "its encoder is a pursuit, not a linear map",
    "temporal": "its code of a token depends on other tokens",
    "batchtopk": "it is a training checkpoint; SAELens saves the inference form as jumprelu",
    "matryoshka_batchtopk": "it is a training checkpoint; SAELens saves the inference form as jumprelu",
}


def recognises(folder: Path) -> bool:
    return bool(layer_folders(folder, (CONFIG, WEIGHTS)))


def read(folder: Path) -> Dictionary:
    return read_layers(layer_folders(folder, (CONFIG, WEIGHTS)), _read_one)


def _read_one(folder: Path) -> Dictionary:
    where = folder / CONFIG
    cfg, about = _settings(read_object(where), where)
    refuse_unknown(cfg, KNOWN, where)
    architecture = entry(cfg, "architecture", str, where, "standard")
    if architecture not in SPARSITIES:
        reason = REFUSED.get(architecture, f"want one of {', '.join(SPARSITIES)}")
        raise ValueError(f"{where}: architecture={architecture}: {reason}")
    hook = entry(about, "hook_name", str, where, "unknown:output")
    if entry(cfg, "reshape_activations", str, where, "none") != "none" or "hook_z" in hook:
        raise ValueError(
            f"{where}: {hook} is read with all heads put side by side, which is no site here"
        )
    source = target = site_of_hook(hook)
    if "transcoder" in architecture:
        target = site_of_hook(entry(about, "hook_name_out", str, where, "unknown_out:output"))
    k = entry(cfg, "k", int, where, 100) if architecture == "topk" else None
    source, target = dictlearn_sites(about) or (source, target)
    if _standardised(cfg, architecture, where):
        source = target = source.removesuffix(STANDARDISED) + STANDARDISED
    return build_layer(
        where,
        _tensors(folder, cfg, architecture),
        source=source,
        target=target,
        sparsity=_sparsity(architecture, k),
        k=k,
        centre=entry(cfg, "apply_b_dec_to_input", bool, where, "transcoder" not in architecture),
        training={
            "format": "saelens",
            "model": entry(about, "model_name", str, where, None),
            **scales(*[_input_scale(folder, cfg, architecture)] * 2),
        },
    )


def _standardised(cfg: Mapping[str, Any], architecture: str, where: Path) -> bool:
    """Whether inputs are standardised token by token, and outputs scaled back."""
    convention = entry(cfg, "normalize_activations", str, where, "none")
    return convention == "layer_norm" and "transcoder" not in architecture


def _sparsity(architecture: str, k: int | None) -> dict[str, Any]:
    options: dict[str, dict[str, Any]] = {"topk": {"k": k}}
    name = SPARSITIES[architecture]
    return {"name": name, **options.get(name, {})}


def _settings(cfg: dict[str, Any], where: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """(the configuration, what it says of model and site), of SAELens 6 or before."""
    about = entry(cfg, "metadata", dict, where, {})
    if "sae_lens_version" in about:
        return cfg, about
    old = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    flat = {old.get(key, key): value for key, value in cfg.items()}
    chosen = flat.get("activation_fn", "relu")
    if chosen not in ("relu", "topk"):
        raise ValueError(f"{where}: activation_fn={chosen!r}; want relu or topk")
    if chosen == "topk":
        kwargs = entry(flat, "activation_fn_kwargs", dict, where)
        flat |= {"architecture": "topk", "k": entry(kwargs, "k", int, where)}
    if isinstance(flat.get("normalize_activations"), bool):
        scaled = flat["normalize_activations"]
        flat["normalize_activations"] = "expected_average_only_in" if scaled else "none"
    return flat, flat


def _tensors(folder: Path, cfg: Mapping[str, Any], architecture: str) -> dict[str, Tensor]:
    """The file's tensors by our names, in our layout."""
    path = folder / WEIGHTS
    stored = read_tensors(path)
    check_numbers(path, stored)
    tensors = {name: tensor.float() for name, tensor in stored.items()}
    ones = tensors.pop("scaling_factor", None)  # from a fine-tuning step of SAELens before 6
    if ones is not None and not bool((ones == 1).all()):
        raise ValueError(f"{path}: scaling_factor is not 1; fold it into the decoder first")
    biases = {"gated": ["b_gate", "b_mag", "r_mag"]}.get(architecture, ["b_enc"])
    required = ["W_enc", "W_dec", "b_dec", *biases]
    required += ["threshold"] if "jumprelu" in architecture else []
    required += ["W_skip"] if "skip" in architecture else []
    check_names(path, tensors, required)
    names = {
        "b_gate": "b_enc",
        "b_mag": "b_mag_SF",
        "r_mag": "r_SF",
        "threshold": "raw_threshold_SF",
    }
    ours = {names.get(name, name): tensor for name, tensor in tensors.items()}
    scale = _input_scale(folder, cfg, architecture)
    ours["W_enc"] = transposed(path, ours["W_enc"]) * scale
    ours["W_dec"], ours["b_dec"] = ours["W_dec"] / scale, ours["b_dec"] / scale
    where = folder / CONFIG
    if architecture == "topk" and entry(cfg, "rescale_acts_by_decoder_norm", bool, where, False):
        norms_F = ours["W_dec"].norm(dim=-1).clamp_min(1e-8)
        ours["W_enc"], ours["b_enc"] = ours["W_enc"] * norms_F[:, None], ours["b_enc"] * norms_F
        ours["W_dec"] = ours["W_dec"] / norms_F[:, None]
    return ours


def _input_scale(folder: Path, cfg: Mapping[str, Any], architecture: str) -> float:
    """The factor on activations, which SAELens folds in when it saves an inference form."""
    where = folder / CONFIG
    convention = entry(cfg, "normalize_activations", str, where, "none")
    if convention == "none" or _standardised(cfg, architecture, where):
        return 1.0
    scaler = folder / SCALER
    if convention == "expected_average_only_in" and "transcoder" not in architecture:
        if scaler.is_file():
            return float(entry(read_object(scaler), "scaling_factor", float, scaler))
        raise ValueError(
            f"{where}: normalize_activations={convention}, but there is no {SCALER} with the factor; "
            f"save it again with SAELens 6, which folds the factor into the weights"
        )
    raise ValueError(
        f"{where}: normalize_activations={convention} depends on each token and cannot be part "
        f"of the weights; want none, expected_average_only_in or, of an SAE, layer_norm"
    )
