"""What other tools call our keys: Lightning, transformers, SAELens, sparsify, dictionary_learning."""

from __future__ import annotations

from collections.abc import Collection

# Ours, the likeliest first, and the names that people type for it. A dotted name is looked up whole,
# then by its last part.
USUAL: dict[tuple[str, ...], str] = {
    (
        "steps",
    ): "max_steps num_steps n_steps total_steps train_steps training_steps iterations iters "
    "max_iters epochs max_epochs num_epochs num_train_epochs n_epochs",
    ("steps", "data.max_tokens"): "training_tokens train_tokens total_tokens total_training_tokens "
    "total_training_samples num_tokens max_examples",
    ("tokens", "steps", "data.max_tokens", "eval_tokens"): "tokens n_tokens max_tokens",
    ("batch_tokens",): "batch_size bs train_batch_size train_batch_size_tokens sae_batch_size "
    "micro_batch_size per_device_train_batch_size batch tokens_per_batch",
    ("trainer.accumulate_grad_batches",): "gradient_accumulation_steps grad_acc_steps accumulate",
    ("optim.lr",): "lr learning_rate base_lr max_lr",
    ("optim.betas",): "adam_beta1 adam_beta2 beta1 beta2",
    ("schedule.warmup",): "warmup warmup_steps lr_warmup_steps lr_warm_up_steps warmup_ratio",
    ("schedule.decay",): "decay lr_decay_steps decay_start decay_steps",
    ("clip_norm",): "grad_clip gradient_clip_val max_grad_norm clip_grad_norm grad_norm_clip",
    ("dict.k",): "k topk top_k target_l0 l0 num_active",
    ("dict.n_features",): "d_sae dict_size n_features num_latents n_latents d_dict n_dict features "
    "dictionary_size d_hidden",
    ("dict.expansion",): "expansion expansion_factor",
    ("dict.layer", "dict.layers"): "layer hook_layer layer_idx layers",
    ("dict.site", "dict.sites"): "site hook_name hook_point hookpoints hook",
    ("dict.prefixes",): "matryoshka_widths group_fractions prefixes",
    (
        "data.context",
    ): "context context_size context_length ctx_len ctx seq_len seq_length max_length "
    "max_seq_len block_size",
    ("data",): "dataset dataset_path dataset_name corpus text",
    ("model",): "model_name model_name_or_path model_path pretrained checkpoint_path_model lm",
    ("dict",): "kind architecture sae_type arch trainer_class",
    ("sparsity",): "activation activation_fn nonlinearity",
    ("objective",): "loss loss_fn",
    ("optim",): "optimizer optimiser",
    ("schedule",): "scheduler lr_scheduler lr_scheduler_name",
    ("logger",): "wandb use_wandb log_to_wandb report_to",
    (
        "objective.terms.l1.coefficient",
    ): "l1 l1_coefficient l1_coeff l1_penalty l1_alpha sparsity_coeff",
    ("objective.terms.auxk.coefficient",): "auxk_alpha auxk_coeff aux_loss_coefficient",
    ("dead_after",): "dead_feature_window dead_feature_threshold dead_steps_threshold",
    ("source.buffer_tokens",): "buffer_size n_batches_in_buffer shuffle_buffer",
    ("callbacks.checkpoint.every_steps",): "save_every save_steps checkpoint_every n_checkpoints",
    ("trainer.log_every_n_steps",): "log_every log_steps logging_steps log_interval",
    ("trainer.precision",): "precision mixed_precision amp",
    ("model.dtype",): "dtype torch_dtype",
    ("trainer", "model.device"): "device accelerator gpu gpus cuda",
    ("run_dir", "output"): "output_dir out_dir save_dir log_dir",
    ("name",): "run_name experiment_name wandb_name",
    ("resume",): "resume_from resume_from_checkpoint checkpoint ckpt ckpt_path",
    ("eval_tokens",): "n_eval_tokens num_eval_tokens eval_batches",
}
OURS = {name: ours for ours, names in USUAL.items() for name in names.split()}
MOST = 2  # keys that are suggested


def meant_by(name: str, there: Collection[str]) -> list[str]:
    """The keys among those that are `there` which a usual name stands for, the likeliest first."""
    name = name.lower().replace("-", "_")
    ours = OURS.get(name) or OURS.get(name.rpartition(".")[2], ())
    return [key for key in ours if key in there and key != name][:MOST]
