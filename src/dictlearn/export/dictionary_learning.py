"""dictionary_learning's folders, as its `load_dictionary` reads them.

The layout is that of dictionary-learning 0.1: config.json has the settings of "trainer" and "buffer",
and ae.pt is a state dict that torch.save writes (a pickle; ours has only names and tensors and loads
with weights_only=True). Its entries depend on the class:

    AutoEncoderTopK          encoder.weight [F, D], encoder.bias [F], decoder.weight [D, F],
                             b_dec [D], k, threshold (-1: never set); subtracts b_dec
    JumpReluAutoEncoder      W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D], threshold [F]
    AutoEncoderNew           encoder.weight, encoder.bias, decoder.weight, decoder.bias (ReLU)
    GatedAutoEncoder         encoder.weight, gate_bias, mag_bias, r_mag, decoder.weight,
                             decoder_bias; subtracts it

AutoEncoder has ReLU too, but its loader normalises decoder rows, which changes activations.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from dictlearn.ckpt.foreign.dictionary_learning import CONFIG, UNCENTRED, WEIGHTS
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import recentred
from dictlearn.export import _layers
from dictlearn.export.protocol import Exporter, Job
from dictlearn.types import ModelInfo

CLASSES = {  # sparsity: (class, its trainer)
    "topk": ("AutoEncoderTopK", "TopKTrainer"),
    "jumprelu": ("JumpReluAutoEncoder", "JumpReluTrainer"),
    "relu": ("AutoEncoderNew", "StandardTrainerAprilUpdate"),
    "gated": ("GatedAutoEncoder", "GatedSAETrainer"),
}


@final
class DictionaryLearning(Exporter):
    """SAEs and transcoders; several layers get a folder each."""

    name = "dictionary_learning"

    def holds(self, dictionary: Dictionary) -> frozenset[str]:
        return frozenset(CLASSES)

    def refusal(self, dictionary: Dictionary, info: ModelInfo) -> str | None:
        if dictionary.shape.skip:
            return "its dictionaries have no linear path beside the features"
        if dictionary.sparsity.options().get("across_layers"):
            return "its layers cannot share their k features"
        return _layers.refusal("dictionary_learning", dictionary)

    def write(self, job: Job, folder: Path) -> None:
        for layer, inner in _layers.layers(job.dictionary, folder):
            name, trainer = CLASSES[layer.sparsity.name]
            layer = recentred(layer, centre=name not in UNCENTRED)
            tensors = {key: value.contiguous().cpu() for key, value in _tensors(layer).items()}
            torch.save(tensors, inner / WEIGHTS)
            cfg = {
                "trainer": {"trainer_class": trainer, "dict_class": name} | _trainer(layer, job),
                "buffer": {
                    "d_submodule": layer.width,
                    "io": "out" if layer.sources == layer.targets else "in_and_out",
                    "ctx_len": _layers.context_length(job.training, job.info.context_length),
                    "dataset": _layers.dataset_name(job.training),
                },
                "dictlearn": _layers.importer_fields(layer),
            }
            (inner / CONFIG).write_text(json.dumps(cfg, indent=2, allow_nan=False) + "\n")

    def usage(self, dictionary: Dictionary, repo: str, inner: str) -> str:
        inner = _layers.first_folder(dictionary, inner)
        return f"""from dictionary_learning.utils import load_dictionary
from huggingface_hub import snapshot_download

folder = snapshot_download("{repo}", allow_patterns="{inner}/*")
dictionary, config = load_dictionary(f"{{folder}}/{inner}", device="cpu")
"""


@torch.no_grad()
def _tensors(layer: Dictionary) -> dict[str, Tensor]:
    W_enc, b_enc = layer.encoder.W_enc[0], layer.encoder.b_enc[0]
    W_dec, b_dec, sparsity = layer.W_dec, layer.decoder.b_dec[0], layer.sparsity
    if sparsity.name == "jumprelu":
        return {
            "W_enc": W_enc.T,
            "b_enc": b_enc,
            "W_dec": W_dec,
            "b_dec": b_dec,
            "threshold": _layers.thresholds(layer)[0],
        }
    linear = {"encoder.weight": W_enc, "decoder.weight": W_dec.T}
    if sparsity.name == "gated":
        state = sparsity.state_dict()
        biases = {"gate_bias": b_enc, "mag_bias": state["b_mag_SF"][0], "r_mag": state["r_SF"][0]}
        return linear | biases | {"decoder_bias": b_dec}
    linear["encoder.bias"] = b_enc
    if sparsity.name == "topk":
        k = torch.tensor(sparsity.options()["k"], dtype=torch.int32)
        return linear | {"b_dec": b_dec, "k": k, "threshold": torch.tensor(-1.0)}
    return linear | {"decoder.bias": b_dec}


def _trainer(layer: Dictionary, job: Job) -> dict[str, Any]:
    source = layer.sources[0]
    number = re.search(r"\d+", source)
    settings: dict[str, Any] = {
        "activation_dim": layer.width,
        "dict_size": layer.n_features,
        "layer": int(number[0]) if number else None,
        "lm_name": job.info.name,
        "submodule_name": re.sub(r"^(\w+)\.(\d+)$", r"\1_layer_\2", layer.targets[0]),
        "seed": job.training.get("seed"),
        "device": "cpu",
    }
    if layer.sparsity.name == "topk":
        settings["k"] = layer.sparsity.options()["k"]
    return settings
