"""SAELens' folders, as `SAE.load_from_disk` and `SAE.from_pretrained` read them.

The layout is that of SAELens 6, checked with 6.54:

    cfg.json                     architecture, d_in, d_sae, d_out, dtype, apply_b_dec_to_input,
                                 normalize_activations, k, metadata
    sae_weights.safetensors      W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D], threshold [F],
                                 W_skip [D, D]; gated: b_gate, b_mag, r_mag [F] instead of b_enc

Without `sae_lens_version` in the metadata, SAELens takes the file for an older version's and ignores
the rest of the metadata. Its transcoders have ReLU or JumpReLU features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dictlearn.ckpt.files import write_tensors
from dictlearn.ckpt.foreign.saelens import CONFIG, WEIGHTS
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import recentred
from dictlearn.export import _layers
from dictlearn.export.protocol import Exporter, Job
from dictlearn.lm.other_names import hook_name
from dictlearn.lm.sites import STANDARDISED
from dictlearn.types import ModelInfo

VERSION = "6.54.12"  # the version with this layout
# sparsity -> architecture, or the prefix of the architectures of transcoders
AUTOENCODERS = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu", "gated": "gated"}
TRANSCODERS = {"relu": "", "jumprelu": "jumprelu_"}


@final
class SAELens(Exporter):
    """SAEs, transcoders and skip transcoders; several layers get a folder each."""

    name = "saelens"

    def holds(self, dictionary: Dictionary) -> frozenset[str]:
        autoencoder = dictionary.sources == dictionary.targets and not dictionary.shape.skip
        return frozenset(AUTOENCODERS if autoencoder else TRANSCODERS)

    def refusal(self, dictionary: Dictionary, info: ModelInfo) -> str | None:
        return _layers.refusal("SAELens", dictionary, standardised=True)

    def write(self, job: Job, folder: Path) -> None:
        for layer, inner in _layers.layers(job.dictionary, folder):
            architecture = _architecture(layer)
            if "transcoder" in architecture:
                layer = recentred(layer, centre=False)
            write_tensors(inner / WEIGHTS, _tensors(layer))
            cfg = _config(layer, architecture) | {"metadata": _metadata(layer, job)}
            (inner / CONFIG).write_text(json.dumps(cfg, indent=2, allow_nan=False) + "\n")

    def usage(self, dictionary: Dictionary, repo: str, inner: str) -> str:
        inner = _layers.first_folder(dictionary, inner)
        return f"""from sae_lens import SAE

sae = SAE.from_pretrained("{repo}", "{inner}")
"""


def _architecture(layer: Dictionary) -> str:
    name = layer.sparsity.name
    if layer.sources == layer.targets and not layer.shape.skip:
        return AUTOENCODERS[name]
    return TRANSCODERS[name] + ("skip_transcoder" if layer.shape.skip else "transcoder")


@torch.no_grad()
def _tensors(layer: Dictionary) -> dict[str, Tensor]:
    b_enc, sparsity = layer.encoder.b_enc[0], layer.sparsity
    tensors = {
        "W_enc": layer.encoder.W_enc[0].T,
        "W_dec": layer.W_dec,
        "b_dec": layer.decoder.b_dec[0],
    }
    match sparsity.name:
        case "gated":
            state = sparsity.state_dict()
            tensors |= {"b_gate": b_enc, "b_mag": state["b_mag_SF"][0], "r_mag": state["r_SF"][0]}
        case "jumprelu":
            tensors |= {"b_enc": b_enc, "threshold": _layers.thresholds(layer)[0]}
        case _:
            tensors["b_enc"] = b_enc
    if layer.W_skip is not None:
        tensors["W_skip"] = layer.W_skip[0]
    return tensors


def _config(layer: Dictionary, architecture: str) -> dict[str, Any]:
    standardised = layer.sources[0].endswith(STANDARDISED)
    cfg: dict[str, Any] = {
        "architecture": architecture,
        "d_in": layer.width,
        "d_sae": layer.n_features,
        "dtype": str(layer.encoder.W_enc.dtype).removeprefix("torch."),
        "device": "cpu",
        "apply_b_dec_to_input": layer.shape.centre,
        "normalize_activations": "layer_norm" if standardised else "none",
        "reshape_activations": "none",
    }
    if "transcoder" in architecture:
        cfg["d_out"] = layer.width
    if architecture == "topk":
        cfg |= {"k": layer.sparsity.options()["k"], "rescale_acts_by_decoder_norm": False}
    return cfg


def _metadata(layer: Dictionary, job: Job) -> dict[str, Any]:
    source, target = layer.sources[0], layer.targets[0]
    metadata = {
        "sae_lens_version": VERSION,
        "sae_lens_training_version": None,
        "model_name": job.info.name,
        "model_class_name": "HookedTransformer",
        "model_from_pretrained_kwargs": {},
        "hook_name": hook_name(source.removesuffix(STANDARDISED)),
        "hook_head_index": None,
        "prepend_bos": job.tokenizer is not None and job.tokenizer.bos_token_id is not None,
        "exclude_special_tokens": True,
        "context_size": _layers.context_length(job.training, job.info.context_length),
        "seqpos_slice": [None],
        "dataset_path": _layers.dataset_name(job.training),
        "training_tokens": job.training.get("tokens"),
        "l0": job.figures.get(f"l0/{source}", job.figures.get("l0")),
        "dictlearn": _layers.importer_fields(layer),
    }
    return metadata if source == target else metadata | {"hook_name_out": hook_name(target)}
