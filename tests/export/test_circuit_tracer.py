"""circuit-tracer's folders: what is in the files means what circuit-tracer takes it for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

import dictlearn
from dictlearn.ckpt.files import read_tensors
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.export.circuit_tracer import CircuitTracer
from dictlearn.export.protocol import Job, check_holds
from dictlearn.types import ModelInfo
from tests.dictionaries import activations, small_dictionary

LAYERS = 3
INFO = ModelInfo("org/model", "abc", "qwen3", LAYERS, 16, 100, 64)
MLPS = {
    "sources": tuple(f"mlp_in.{i}" for i in range(LAYERS)),
    "targets": tuple(f"mlp_out.{i}" for i in range(LAYERS)),
    "centre": False,
}
KINDS = {
    "plt": {"kind": "plt"},
    "skip plt": {"kind": "plt", "skip": True},
    "clt": {"kind": "clt", "link": "lower"},
    "windowed clt": {"kind": "clt", "link": "lower", "window": 2},
    "tied clt": {"kind": "clt", "link": "lower", "tied": True, "window": 2},
}


def built(kind: str, sparsity: str = "jumprelu", **shape) -> Dictionary:
    dictionary = small_dictionary(sparsity, sites=LAYERS, **{**MLPS, **KINDS[kind], **shape})
    scales = torch.tensor([0.5, 2.0, 3.0]).double(), torch.tensor([4.0, 0.25, 1.5]).double()
    folded = dictionary.folded(*scales)  # raw units, with scales that nobody could mistake for 1
    return folded.float().eval().requires_grad_(False)


def job(dictionary: Dictionary) -> Job:
    def samples():
        return iter([activations(50, LAYERS).float()])

    return Job(dictionary, {"tokens": 7}, INFO, None, samples)


def as_circuit_tracer(folder: Path, x_NSD: torch.Tensor) -> torch.Tensor:
    """What its classes compute from the files (transcoder/{single_layer,cross_layer}_transcoder.py)."""
    kind = yaml.safe_load((folder / "config.yaml").read_text())["model_kind"]
    outputs = [torch.zeros_like(x_NSD[:, 0]) for _ in range(LAYERS)]
    for i in range(LAYERS):
        x, suffix = x_NSD[:, i], ""
        if kind == "transcoder_set":
            found = read_tensors(folder / f"layer_{i}.safetensors")
            found["threshold"] = found.pop("activation_function.threshold", torch.zeros(()))
            found["W_dec"] = found["W_dec"][:, None]
        else:
            suffix = f"_{i}"
            found = read_tensors(folder / f"W_enc_{i}.safetensors")
            found |= read_tensors(folder / f"W_dec_{i}.safetensors")
        pre = x @ found[f"W_enc{suffix}"].T + found[f"b_enc{suffix}"]
        code = torch.relu(pre) * (pre > found.get(f"threshold{suffix}", torch.zeros(())))
        for slot, W_dec in enumerate(found[f"W_dec{suffix}"].unbind(1)):
            outputs[i + slot] += code @ W_dec
        outputs[i] += found[f"b_dec{suffix}"]
        if "W_skip" in found:
            outputs[i] += x @ found["W_skip"].T
    return torch.stack(outputs, dim=1)


@pytest.mark.parametrize("sparsity", ["jumprelu", "relu"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_files_compute_what_the_dictionary_does(kind, sparsity, tmp_path):
    dictionary, x = built(kind, sparsity), activations(50, LAYERS).float()
    CircuitTracer().write(job(dictionary), tmp_path)
    wanted = dictionary(x)
    torch.testing.assert_close(as_circuit_tracer(tmp_path, x), wanted, atol=1e-5, rtol=1e-5)
    again = dictlearn.load(tmp_path)
    torch.testing.assert_close(again(x), wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(again.encode(x).features, dictionary.encode(x).features)
    assert (again.kind, again.shape.k) == (dictionary.kind, dictionary.shape.k)
    assert again.provenance["model"] == "org/model"


def test_settings_say_where_it_goes_and_where_it_comes_from(tmp_path):
    CircuitTracer(scan="org/features").write(job(built("clt")), tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["model_kind"] == "cross_layer_transcoder"
    assert settings["feature_input_hook"] == "mlp.hook_in"
    assert settings["feature_output_hook"] == "mlp.hook_out"
    assert settings["scan"] == "org/features"
    assert settings["dictlearn"]["tokens"] == 7
    assert "activation" not in settings  # with one its loader finds no place for thresholds


def test_a_family_with_a_norm_after_the_mlp_writes_behind_it(tmp_path):
    gemma = ModelInfo("gemma", None, "gemma2", LAYERS, 16, 100, 64)
    one = built("plt")
    CircuitTracer().write(Job(one, {}, gemma, None, lambda: iter(())), tmp_path)
    settings = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert settings["feature_output_hook"] == "hook_mlp_out"


REFUSED = {
    "no skip": ("clt", {"skip": True}, INFO),
    "MLP of every layer, 0 to 3": ("plt", {}, ModelInfo("m", None, "qwen3", 4, 16, 100, 64)),
    "format.feature_output_hook=": ("plt", {}, ModelInfo("m", None, "bloom", 3, 16, 100, 64)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_cannot_hold_is_refused_with_the_reason(reason):
    kind, shape, info = REFUSED[reason]
    with pytest.raises(ValueError, match=f"^format=circuit_tracer: .*{reason}"):
        check_holds(CircuitTracer(), built(kind, **shape), info)


def test_kinds_without_a_feature_per_layer_are_refused():
    crosscoder = small_dictionary(sites=LAYERS, kind="crosscoder", link="shared", centre=False)
    molt = small_dictionary(
        kind="molt", link="transforms", ranks=(2,) * 40, n_features=40, centre=False
    )
    for one in (crosscoder, molt):
        with pytest.raises(ValueError, match=f"no {one.kind}"):
            check_holds(CircuitTracer(), one, INFO)


@pytest.mark.parametrize("sparsity", ["topk", "gated", "jumprelu", "relu"])
def test_what_it_can_hold_is_not(sparsity):
    check_holds(CircuitTracer(), built("plt", sparsity), INFO)
    named = CircuitTracer(feature_output_hook="mlp.hook_out")
    check_holds(named, built("plt"), ModelInfo("m", None, "bloom", LAYERS, 16, 100, 64))
