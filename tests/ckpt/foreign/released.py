"""Small folders in the layouts of published dictionaries, of one dictionary that is worked out by hand.

It has three features of width two; `X` are two tokens.

    feature  reads     bias  threshold  writes
    0        [1, 0]     0.5      1      [1,  0]
    1        [0, 2]     0        1      [0,  1]
    2        [1, 1]    -1        2      [1, -1]
                                 bias   [0.25, -0.25]

    x            pre-activations
    [1, 0.5]     [1.5, 1, 0.5]
    [2, 1.5]     [2.5, 3, 2.5]
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from dictlearn.ckpt.files import write_tensors

W_ENC = torch.tensor([[1.0, 0], [0, 2], [1, 1]])  # [F, D]
B_ENC = torch.tensor([0.5, 0, -1])
THETA = torch.tensor([1.0, 1, 2])
W_DEC = torch.tensor([[1.0, 0], [0, 1], [1, -1]])  # [F, D]
B_DEC = torch.tensor([0.25, -0.25])
SKIP = torch.tensor([[0.0, 1], [0, 0]])  # x @ SKIP: the second output gets the first input
X = torch.tensor([[1.0, 0.5], [2, 1.5]])

# Of relu, of thresholds (a pre-activation of 1 is not above 1), and of the one largest.
RELU = ([[1.5, 1, 0.5], [2.5, 3, 2.5]], [[2.25, 0.25], [5.25, 0.25]])
JUMP = ([[1.5, 0, 0], [2.5, 3, 2.5]], [[1.75, -0.25], [5.25, 0.25]])
TOP1 = ([[1.5, 0, 0], [0, 3, 0]], [[1.75, -0.25], [0.25, 2.75]])


def scope(
    root: Path, inner: str = "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
) -> Path:
    """Gemma Scope, as numpy.savez writes it."""
    folder = root / inner
    folder.mkdir(parents=True)
    arrays: dict[str, Any] = {
        "W_enc": W_ENC.T,
        "W_dec": W_DEC,
        "b_enc": B_ENC,
        "b_dec": B_DEC,
        "threshold": THETA,
    }
    np.savez(folder / "params.npz", **{name: t.numpy() for name, t in arrays.items()})
    return folder


def scope_2(
    root: Path,
    inner: str = "gemma-scope-2-1b-pt/resid_post/layer_22_width_65k_l0_medium",
    config: dict[str, object] | None = None,
    **more: Tensor,
) -> Path:
    """Gemma Scope 2, one layer."""
    folder = root / inner
    folder.mkdir(parents=True)
    write_tensors(folder / "params.safetensors", theirs_2() | more)
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def theirs_2() -> dict[str, Tensor]:
    names = {"w_enc": W_ENC.T, "w_dec": W_DEC, "b_enc": B_ENC, "b_dec": B_DEC, "threshold": THETA}
    return {name: tensor.contiguous() for name, tensor in names.items()}


def scope_2_layers(root: Path, inner: str, n_layers: int = 2, **more: Tensor) -> Path:
    """Gemma Scope 2, several layers: layer i writes t - i + 1 times W_DEC to layer t, from i on."""
    folder = root / inner
    folder.mkdir(parents=True)
    for i in range(n_layers):
        slots = [W_DEC * max(0, t - i + 1) for t in range(n_layers)]
        tensors = {**theirs_2(), "w_dec": torch.stack(slots, 1), **more}
        write_tensors(folder / f"params_layer_{i}.safetensors", tensors)
    return folder


def qwen(root: Path, inner: str = "SAE-Res-Qwen3-1.7B-Base-W32K-L0_1", layers=(12,)) -> Path:
    """Qwen-Scope, a file of each layer."""
    folder = root / inner
    folder.mkdir(parents=True)
    tensors = {"W_enc": W_ENC, "W_dec": W_DEC.T.contiguous(), "b_enc": B_ENC, "b_dec": B_DEC}
    for layer in layers:
        torch.save(tensors, folder / f"layer{layer}.sae.pt")
    return folder


def goodfire(root: Path, name: str = "Llama-3.1-8B-Instruct-SAE-l19.pth") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    tensors = {
        "encoder_linear.weight": W_ENC,
        "encoder_linear.bias": B_ENC,
        "decoder_linear.weight": W_DEC.T.contiguous(),
        "decoder_linear.bias": B_DEC,
    }
    torch.save(tensors, root / name)
    return root


def linear() -> dict[str, Tensor]:
    return {
        "encoder.weight": W_ENC,
        "encoder.bias": B_ENC,
        "decoder.weight": W_DEC.T.contiguous(),
        "decoder.bias": B_DEC,
    }


def esmc(root: Path, inner: str = "ESMC-6B-sae-k1-codebook3", layers=(60,)) -> Path:
    """ESMC's, whose encoder has no bias; b_dec is subtracted from what is read."""
    folder = root / inner
    folder.mkdir(parents=True)
    about = {"d_model": 2, "codebook_dim": 3, "k": 1, "available_layers": list(layers)}
    (folder / "config.json").write_text(json.dumps({"model_type": "esmc_sae", **about}))
    tensors = {
        "W_enc": W_ENC.T.contiguous(),
        "W_dec": W_DEC,
        "b_dec": B_DEC,
        "idf": torch.ones(3),
        "max": torch.ones(3),
    }
    for layer in layers:
        write_tensors(folder / f"layer_{layer}.safetensors", tensors)
    return folder


LLAMA_SCOPE = {
    "d_model": 2,
    "d_sae": 3,
    "use_decoder_bias": True,
    "apply_decoder_bias_to_pre_encoder": False,
    "act_fn": "jumprelu",
    "jump_relu_threshold": 0.5,
    "norm_activation": "dataset-wise",
    "dataset_average_activation_norm": {"in": 8**0.5, "out": 2 * 8**0.5},
    "sparsity_include_decoder_norm": True,
    "top_k": 50,
    "hook_point_in": "blocks.15.ln2.hook_normalized",
    "hook_point_out": "blocks.15.hook_mlp_out",
}


def llama_scope(root: Path, inner: str = "Llama3_1-8B-Base-L15TC-8x", **cfg: object) -> Path:
    folder = root / inner
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hyperparams.json").write_text(json.dumps(LLAMA_SCOPE | cfg))
    write_tensors(folder / "checkpoints" / "final.safetensors", linear())
    return folder


OPENMOSS = {
    "sae_type": "sae",
    "d_model": 2,
    "expansion_factor": 1.5,
    "act_fn": "jumprelu",
    "norm_activation": "dataset-wise",
    "sparsity_include_decoder_norm": False,
    "hook_point_in": "blocks.15.hook_resid_post",
    "hook_point_out": "blocks.15.hook_resid_post",
}


def openmoss(
    root: Path,
    inner: str = "Llama-Scope-R1-Distill/400M/L15R",
    tensors: dict[str, Tensor] | None = None,
    norm: float = 2**0.5,
    **cfg: object,
) -> Path:
    folder = root / inner
    folder.mkdir(parents=True)
    scalars = {
        f"dataset_average_activation_norm.{end}": torch.tensor(norm) for end in ("in", "out")
    }
    if tensors is None:
        tensors = linear() | {"log_jumprelu_threshold": THETA.log()}
    (folder / "config.json").write_text(json.dumps(OPENMOSS | cfg))
    write_tensors(folder / "sae_weights.safetensors", tensors | scalars)
    return folder


def listed(root: Path) -> Path:
    """A set of circuit-tracer's whose config lists files of Gemma Scope's, which lie beside it."""
    root.mkdir(parents=True, exist_ok=True)
    for layer in range(2):
        scope(root, f"x{layer}").joinpath("params.npz").rename(root / f"layer_{layer}.npz")
        (root / f"x{layer}").rmdir()
    about = {
        "model_kind": "transcoder_set",
        "feature_input_hook": "ln2.hook_normalized",
        "feature_output_hook": "hook_mlp_out",
        "transcoders": ["layer_0.npz", "layer_1.npz"],
    }
    (root / "config.yaml").write_text(yaml.safe_dump(about))
    return root


def _clt(root: Path) -> Path:
    return scope_2_layers(root, "clt/width_262k_l0_big", affine_skip_connection=SKIP)


MAKERS: dict[str, Callable[[Path], Path]] = {  # each makes a folder in an empty one
    "gemma_scope": scope,
    "gemma_scope_2": lambda root: scope_2(
        root, config={"hf_hook_point_in": "model.layers.3.output"}
    ),
    "gemma_scope_2, CLT": _clt,
    "qwen_scope": qwen,
    "goodfire": goodfire,
    "esmc": esmc,
    "llama_scope": llama_scope,
    "openmoss": openmoss,
    "circuit_tracer, listed": listed,
}
