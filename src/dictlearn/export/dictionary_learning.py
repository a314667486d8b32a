"""dictionary_learning's folders, as its `load_dictionary` reads them.

Layout of dictionary-learning 0.1: config.json with the settings of "trainer" and "buffer", and ae.pt,
a state dict that torch.save wrote (a format that is a pickle; ours has names and tensors alone, and
loads with weights_only=True). By class:

    AutoEncoderTopK          encoder.weight [F, D], encoder.bias [F], decoder.weight [D, F],
                             b_dec [D], k, threshold (-1: never set); subtracts b_dec
    JumpReluAutoEncoder      W_enc [D, F], b_enc [F], W_dec [F, D], b_dec [D], threshold [F]
    AutoEncoderNew           encoder.weight, encoder.bias, decoder.weight, decoder.bias (ReLU)
    GatedAutoEncoder         encoder.weight, gate_bias, mag_bias, r_mag, decoder.weight,
                             decoder_bias; subtracts it

AutoEncoder is ReLU too, but its loader brings decoder rows to norm 1, and so changes activations.
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

CLASSES = {  # by sparsity: the class, and the trainer that makes such
    "topk": ("AutoEncoderTopK", "TopKTrainer"),
    "jumprelu": ("JumpReluAutoEncoder", "JumpReluTrainer"),
    "relu": ("AutoEncoderNew", "StandardTrainerAprilUpdate"),
    "gated": ("GatedAutoEncoder", "GatedSAETrainer"),
}


@final
class DictionaryLearning(Exporter):
    """SAEs and transcoders; of several layers, a folder each."""

    name = "dictionary_learning"

    def holds(self, dictionary: Dictionary) -> frozenset[str]:
        return frozenset(CLASSES)

    def refusal(self, dictionary: Dictionary, info: ModelInfo) -> str | None:
        if dictionary.shape.skip:
            return "its dictionaries have features alone, no linear path"
        if dictionary.sparsity.options().get("across_layers"):
            return "layers that share their k features have no form there"
        return _layers.refusal("dictionary_learning", dictionary)

    def write(self, job: Job, folder: Path) -> None:
        for one, inner in _layers.layers(job.dictionary, folder):
            name, trainer = CLASSES[one.sparsity.name]
            one = recentred(one, centre=name not in UNCENTRED)
            tensors = {key: value.contiguous().cpu() for key, value in _tensors(one).items()}
            torch.save(tensors, inner / WEIGHTS)
            cfg = {
                "trainer": {"trainer_class": trainer, "dict_class": name} | _trainer(one, job),
                "buffer": {
                    "d_submodule": one.width,
                    "io": "out" if one.sources == one.targets else "in_and_out",
                    "ctx_len": _layers.context_of(job.training, job.info.context_length),
                    "dataset": _layers.text_of(job.training),
                },
                "dictlearn": _layers.said(one),
            }
            (inner / CONFIG).write_text(json.dumps(cfg, indent=2, allow_nan=False) + "\n")

    def usage(self, dictionary: Dictionary, repo: str, inner: str) -> str:
        inner = _layers.first(dictionary, inner)
        return f"""from dictionary_learning.utils import load_dictionary
from huggingface_hub import snapshot_download

folder = snapshot_download("{repo}", allow_patterns="{inner}/*")
dictionary, config = load_dictionary(f"{{folder}}/{inner}", device="cpu")
"""


@torch.no_grad()
def _tensors(one: Dictionary) -> dict[str, Tensor]:
    W_enc, b_enc = one.encoder.W_enc[0], one.encoder.b_enc[0]
    W_dec, b_dec, sparsity = one.W_dec, one.decoder.b_dec[0], one.sparsity
    if sparsity.name == "jumprelu":
        return {
            "W_enc": W_enc.T,
            "b_enc": b_enc,
            "W_dec": W_dec,
            "b_dec": b_dec,
            "threshold": _layers.thresholds(one)[0],
        }
    linear = {"encoder.weight": W_enc, "decoder.weight": W_dec.T}
    if sparsity.name == "gated":
        own = sparsity.state_dict()
        biases = {"gate_bias": b_enc, "mag_bias": own["b_mag_SF"][0], "r_mag": own["r_SF"][0]}
        return linear | biases | {"decoder_bias": b_dec}
    linear["encoder.bias"] = b_enc
    if sparsity.name == "topk":
        k = torch.tensor(sparsity.options()["k"], dtype=torch.int32)
        return linear | {"b_dec": b_dec, "k": k, "threshold": torch.tensor(-1.0)}
    return linear | {"decoder.bias": b_dec}


def _trainer(one: Dictionary, job: Job) -> dict[str, Any]:
    source = one.sources[0]
    number = re.search(r"\d+", source)
    found: dict[str, Any] = {
        "activation_dim": one.width,
        "dict_size": one.n_features,
        "layer": int(number[0]) if number else None,
        "lm_name": job.info.name,
        "submodule_name": re.sub(r"^(\w+)\.(\d+)$", r"\1_layer_\2", one.targets[0]),
        "seed": job.training.get("seed"),
        "device": "cpu",
    }
    if one.sparsity.name == "topk":
        found["k"] = one.sparsity.options()["k"]
    return found
