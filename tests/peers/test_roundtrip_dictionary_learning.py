"""dictionary_learning loads what we write and computes the same; we load what it writes."""

from __future__ import annotations

import json

import pytest
import torch

import dictlearn
from dictlearn.export.dictionary_learning import DictionaryLearning
from tests.peers.roundtrip import FEATURES, WIDTH, K, activations, assert_same, made, written

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("kind", ["sae", "transcoder"])
@pytest.mark.parametrize(
    ("sparsity", "name"),
    [
        ("topk", "AutoEncoderTopK"),
        ("jumprelu", "JumpReluAutoEncoder"),
        ("relu", "AutoEncoderNew"),
        ("gated", "GatedAutoEncoder"),
    ],
)
@torch.no_grad()
def test_dictionary_learning_loads_ours(kind, sparsity, name, tmp_path):
    from dictionary_learning.utils import load_dictionary

    ours = made(kind, sparsity)
    folder = written(DictionaryLearning(), ours, tmp_path)
    theirs, config = load_dictionary(str(folder), "cpu")
    assert type(theirs).__name__ == name and config["trainer"]["lm_name"] == "pico"
    x_ND = activations()[ours.sources[0]]
    assert_same(ours, theirs.encode(x_ND), theirs(x_ND))


@pytest.mark.parametrize(
    "name",
    [
        "AutoEncoder",
        "AutoEncoderNew",
        "GatedAutoEncoder",
        "JumpReluAutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "MatryoshkaBatchTopKSAE",
    ],
)
@torch.no_grad()
def test_we_load_dictionary_learning(name, tmp_path):
    from dictionary_learning import utils

    torch.manual_seed(0)
    options = {"k": K} if name.endswith(("TopK", "TopKSAE")) else {}
    options |= {"group_sizes": [64, FEATURES - 64]} if name.startswith("Matryoshka") else {}
    made_by_them = getattr(utils, name)(WIDTH, FEATURES, **options)
    for key, parameter in made_by_them.named_parameters():
        parameter.normal_(std=0.05) if key != "threshold" else parameter.uniform_(0.1, 0.5)
    if "k" in options and name != "AutoEncoderTopK":
        made_by_them.threshold.fill_(0.3)
    torch.save(made_by_them.state_dict(), tmp_path / "ae.pt")
    trainer = {"dict_class": name, "layer": 1, "lm_name": "pico", **options}
    (tmp_path / "config.json").write_text(json.dumps({"trainer": trainer, "buffer": {}}))
    theirs, _ = utils.load_dictionary(str(tmp_path), "cpu")
    ours = dictlearn.load(tmp_path)
    x_ND = activations()["resid_post.1"]
    assert_same(ours, theirs.encode(x_ND), theirs(x_ND))
