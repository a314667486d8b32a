"""circuit-tracer's folders, whole and damaged: a dictionary, or one sentence."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
import yaml

import dictlearn
from dictlearn.ckpt.files import read_tensors, write_tensors
from dictlearn.ckpt.foreign import importers

F, D, L = 10, 6, 2
SETTINGS = {
    "model_kind": "transcoder_set",
    "feature_input_hook": "mlp.hook_in",
    "feature_output_hook": "mlp.hook_out",
    "model_name": "org/model",
}


def transcoders(folder: Path, threshold: bool = False, **settings) -> Path:
    for i in range(L):
        tensors = {
            "W_enc": torch.randn(F, D),
            "b_enc": torch.randn(F),
            "W_dec": torch.randn(F, D),
            "b_dec": torch.randn(D),
        }
        if threshold:
            tensors["activation_function.threshold"] = torch.rand(F)
        write_tensors(folder / f"layer_{i}.safetensors", tensors)
    (folder / "config.yaml").write_text(yaml.safe_dump({**SETTINGS, **settings}))
    return folder


def clt(folder: Path) -> Path:
    for i in range(L):
        encoder = {
            f"W_enc_{i}": torch.randn(F, D),
            f"b_enc_{i}": torch.randn(F),
            f"b_dec_{i}": torch.randn(D),
        }
        write_tensors(folder / f"W_enc_{i}.safetensors", encoder)
        decoder = {f"W_dec_{i}": torch.randn(F, L - i, D)}
        write_tensors(folder / f"W_dec_{i}.safetensors", decoder)
    settings = {**SETTINGS, "model_kind": "cross_layer_transcoder"}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder


def change(file: Path, **tensors: torch.Tensor | None) -> None:
    found = {**read_tensors(file), **tensors}
    write_tensors(file, {name: t for name, t in found.items() if t is not None})


def test_every_importer_has_both_functions():
    assert "circuit_tracer" in importers()
    for module in importers().values():
        assert callable(module.recognises) and callable(module.read)


def test_a_set_without_thresholds_is_relu(tmp_path):
    dictionary = dictlearn.load(transcoders(tmp_path))
    assert dictionary.sparsity.name == "relu" and dictionary.sources == ("mlp_in.0", "mlp_in.1")
    x = torch.randn(5, L, D)
    found = read_tensors(tmp_path / "layer_1.safetensors")
    code = torch.relu(x[:, 1] @ found["W_enc"].T + found["b_enc"])
    wanted = code @ found["W_dec"] + found["b_dec"]
    torch.testing.assert_close(dictionary(x)[:, 1], wanted)


def test_the_hubs_topk_is_topk(tmp_path):
    dictionary = dictlearn.load(transcoders(tmp_path, activation="topk", k=3))
    assert dictionary.sparsity.name == "topk"
    assert dictionary.encode(torch.randn(9, L, D)).l0_NS.max() <= 3


def test_a_clt_writes_to_later_layers(tmp_path):
    dictionary = dictlearn.load(clt(tmp_path))
    assert dictionary.kind == "clt" and dictionary.reads(1) == range(2)
    W_dec = read_tensors(tmp_path / "W_dec_0.safetensors")["W_dec_0"]
    assert torch.equal(dictionary.decoder.W_dec[1][0], W_dec[:, 1])


DAMAGE = {
    "model_kind='sae'": lambda f: transcoders(f, model_kind="sae"),
    "k='x'; want 1 to 10": lambda f: transcoders(f, activation="topk", k="x"),
    "feature_input_hook='ln2": lambda f: transcoders(f, feature_input_hook="ln2.hook_scale"),
    "transcoders lists": lambda f: transcoders(f, transcoders=["hf://a/b"]),
    "every layer from 0": lambda f: (transcoders(f) / "layer_0.safetensors").unlink(),
    "not a readable safetensors": lambda f: (transcoders(f) / "layer_1.safetensors").write_text(
        "x"
    ),
    "not readable as yaml": lambda f: (transcoders(f) / "config.yaml").write_text("model_kind: ["),
    "want keys and values": lambda f: (transcoders(f) / "config.yaml").write_text(
        "- model_kind: 1"
    ),
    "found none": lambda f: write_tensors(transcoders(f) / "layer_0.safetensors", {}),
    "b_dec has shape": lambda f: change(
        transcoders(f) / "layer_0.safetensors", b_dec=torch.ones(3)
    ),
    "W_enc has shape": lambda f: change(
        transcoders(f) / "layer_0.safetensors", W_enc=torch.ones(3)
    ),
    "not those of the first": lambda f: change(
        transcoders(f) / "layer_1.safetensors", W_skip=torch.ones(D, D)
    ),
    "finite numbers": lambda f: change(
        transcoders(f) / "layer_1.safetensors", b_enc=torch.full((F,), torch.nan)
    ),
    "is negative": lambda f: change(
        transcoders(f, threshold=True) / "layer_0.safetensors",
        **{"activation_function.threshold": -torch.ones(F)},
    ),
    "W_dec has shape": lambda f: change(
        clt(f) / "W_dec_0.safetensors", W_dec_0=torch.ones(F, L - 1, D)
    ),
    "want tensors": lambda f: change(clt(f) / "W_enc_1.safetensors", b_enc_1=None),
}


@pytest.mark.parametrize("sentence", DAMAGE)
def test_damage_is_one_sentence(sentence, tmp_path):
    DAMAGE[sentence](tmp_path)
    with pytest.raises(ValueError) as error:
        dictlearn.load(tmp_path)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_random_bytes_are_refused_with_a_sentence(tmp_path):
    """Every file in turn, cut or overwritten at random places: a dictionary or a ValueError."""
    rng = random.Random(0)
    for make, names in (
        (transcoders, ("config.yaml", "layer_0.safetensors")),
        (clt, ("W_dec_1.safetensors",)),
    ):
        for trial in range(40):
            folder = tmp_path / f"{make.__name__}-{trial}"
            folder.mkdir()
            file = make(folder) / names[trial % len(names)]
            data = bytearray(file.read_bytes())
            for _ in range(rng.randint(1, 5)):
                data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
            file.write_bytes(data[: rng.randint(0, len(data))] if trial % 3 == 0 else data)
            try:
                dictlearn.load(folder)
            except ValueError as error:
                assert str(error)


def test_a_folder_of_nothing_known_names_what_is(tmp_path):
    with pytest.raises(ValueError, match="circuit_tracer"):
        dictlearn.load(tmp_path)
