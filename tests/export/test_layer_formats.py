"""SAELens, sparsify, dictionary_learning: written and read back, or refused in a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dictlearn
from dictlearn.dicts.description import from_json
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.export.calibrate import as_jumprelu
from dictlearn.export.circuit_tracer import CircuitTracer
from dictlearn.export.compare import difference
from dictlearn.export.dictionary_learning import DictionaryLearning
from dictlearn.export.protocol import Exporter, Job, why_not
from dictlearn.export.saelens import SAELens
from dictlearn.export.sparsify import Sparsify, hookpoint
from dictlearn.types import ModelInfo
from tests.dictionaries import INFERENCE, activations
from tests.dicts.test_equivalent import stretched
from tests.dicts.test_start import again, batch, begun
from tests.export.test_circuit_tracer import INFO as CLT_INFO
from tests.export.test_circuit_tracer import built

INFO = ModelInfo("org/model", None, "qwen3", 4, 16, 100, 128)
TRAINING = {"tokens": 1000, "seed": 3, "data": {"_target_": "a.stdlib_windows", "context": 64}}
SHAPES = {
    "sae": {},
    "uncentred sae": {"centre": False},
    "transcoder": {"centre": False, "kind": "transcoder", "targets": ("mlp_out.0",)},
    "skip": {"centre": False, "kind": "transcoder", "targets": ("mlp_out.0",), "skip": True},
    "plt": {
        "centre": False,
        "kind": "plt",
        "sites": 3,
        "targets": tuple(f"mlp_out.{i}" for i in range(3)),
    },
}


EXPORTERS = (SAELens(), Sparsify(), DictionaryLearning())


def made(sparsity: str, shape: str) -> Dictionary:
    """Float32, in inference form."""
    torch.manual_seed(0)
    dictionary = stretched(sparsity, **SHAPES[shape]).float()
    return dictionary.eval().requires_grad_(False)


def job_of(dictionary: Dictionary) -> Job:
    def samples() -> Iterator[Tensor]:
        yield activations(200, dictionary.n_sources).float()

    return Job(dictionary, TRAINING, INFO, None, samples, {"l0": 4.25})


def held() -> Iterator[tuple[Exporter, str, str]]:
    for exporter in EXPORTERS:
        for shape in SHAPES:
            for sparsity in INFERENCE:
                one = made(sparsity, shape)
                if exporter.refusal(one, INFO) is None and sparsity in exporter.holds(one):
                    yield exporter, shape, sparsity


@pytest.mark.parametrize(
    ("exporter", "shape", "sparsity"), list(held()), ids=lambda v: getattr(v, "name", v)
)
def test_what_is_written_reads_back(exporter, shape, sparsity, tmp_path):
    dictionary = made(sparsity, shape)
    job = job_of(dictionary)
    exporter.write(job, tmp_path)
    again = dictlearn.load(tmp_path)
    assert (again.sources, again.targets) == (dictionary.sources, dictionary.targets)
    assert again.kind == dictionary.kind and again.sparsity.name == sparsity
    assert again.provenance["format"] == exporter.name
    assert again.provenance["model"] == "org/model"
    found = difference(dictionary, again, job.samples())
    assert found.small and next(job.samples()).shape[1] == dictionary.n_sources, found
    assert not again.training and not any(p.requires_grad for p in again.parameters())


@pytest.mark.parametrize("exporter", [SAELens(), Sparsify(), DictionaryLearning()])
def test_training_can_start_from_what_was_exported(exporter, tmp_path):
    saelens = exporter.name == "saelens"
    dictionary, read = (
        made("jumprelu" if saelens else "topk", "skip" if saelens else "sae"),
        batch(),
    )
    exporter.write(job_of(dictionary), tmp_path)
    start = dictlearn.load(tmp_path).double()
    fresh = from_json(dictionary.to_json() | {"unit_norm": False}).double()
    same = again(begun(fresh, start, read), read)
    torch.testing.assert_close(
        same(read.x_NSD), dictionary.double()(read.x_NSD), rtol=1e-4, atol=1e-4
    )


def test_all_that_these_formats_have_in_common_is_tested():
    names = [(exporter.name, shape, sparsity) for exporter, shape, sparsity in held()]
    assert ("saelens", "sae", "gated") in names and ("saelens", "plt", "jumprelu") in names
    assert ("saelens", "transcoder", "topk") not in names
    assert ("sparsify", "skip", "topk") in names and ("sparsify", "sae", "relu") not in names
    assert ("dictionary_learning", "transcoder", "topk") in names
    assert ("dictionary_learning", "skip", "topk") not in names


def test_saelens_is_told_where_and_on_what(tmp_path):
    SAELens().write(job_of(made("jumprelu", "skip")), tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["architecture"] == "jumprelu_skip_transcoder" and cfg["d_out"] == 16
    assert cfg["normalize_activations"] == "none" and cfg["apply_b_dec_to_input"] is False
    wanted = {
        "model_name": "org/model",
        "hook_name": "blocks.0.hook_resid_post",
        "hook_name_out": "blocks.0.hook_mlp_out",
        "context_size": 64,
        "dataset_path": "stdlib",
        "l0": 4.25,
        "training_tokens": 1000,
    }
    assert {key: cfg["metadata"][key] for key in wanted} == wanted
    assert tuple(map(int, cfg["metadata"]["sae_lens_version"].split(".")))[0] >= 6


@pytest.mark.parametrize("exporter", [SAELens(), Sparsify(), DictionaryLearning()])
@pytest.mark.parametrize(
    ("shape", "why"),
    [
        ({"kind": "clt", "link": "lower", "sites": 2}, "in a clt a feature writes to several"),
        ({"kind": "crosscoder", "link": "shared", "sites": 2}, "one code is read from several"),
        (
            {"kind": "molt", "link": "transforms", "ranks": (2,) * 40},
            "features write no fixed vectors",
        ),
    ],
    ids=lambda v: v["kind"] if isinstance(v, dict) else "",
)
def test_what_no_layer_holds_is_refused(exporter, shape, why):
    from tests.dictionaries import small_dictionary

    sites = shape.get("sites", 1)
    targets = tuple(f"mlp_out.{i}" for i in range(sites))
    dictionary = small_dictionary("topk", targets=targets, centre=False, **shape)
    refusal = exporter.refusal(dictionary, INFO)
    assert refusal is not None and why in refusal


@pytest.mark.parametrize("exporter", [*EXPORTERS, CircuitTracer()], ids=lambda one: one.name)
@pytest.mark.parametrize("sparsity", INFERENCE)
def test_a_sparsity_is_held_becomes_jumprelu_or_is_refused_by_name(exporter, sparsity):
    one = built("plt", sparsity) if exporter.name == "circuit_tracer" else made(sparsity, "sae")
    info = CLT_INFO if exporter.name == "circuit_tracer" else INFO
    reason = why_not(exporter, one, info)
    if reason is not None:
        assert f"these are {sparsity}" in reason
    elif sparsity not in exporter.holds(one):
        sites = one.n_sources
        converted, exact = as_jumprelu(one, lambda: [activations(100, sites).float()])
        assert converted.sparsity.name == "jumprelu"
        if exact:
            assert difference(one, converted, [activations(100, sites).float()]).small
    if one.sparsity.signed or sparsity == "sparsemax":
        assert reason is not None
        with pytest.raises(
            ValueError, match=f"{sparsity} features cannot become jumprelu features"
        ):
            as_jumprelu(one, lambda: [])


def test_thresholds_are_refused_by_sparsify_with_the_reason():
    refusal = Sparsify().refusal(made("jumprelu", "sae"), INFO)
    assert refusal is not None and "exactly k features" in refusal and "sparsity=topk" in refusal


@pytest.mark.parametrize(
    ("source", "target", "family", "module"),
    [
        ("resid_post.3", "resid_post.3", "qwen3", "layers.3"),
        ("resid_post.3", "resid_post.3", "gpt2", "h.3"),
        ("mlp_in.3", "mlp_out.3", "llama", "layers.3.mlp"),
        ("attn_out.3", "attn_out.3", "gpt2", "h.3.attn"),
        ("mlp_out.3", "mlp_out.3", "gemma2", "mlp_out.3"),
        ("resid_mid.3", "resid_mid.3", "qwen3", "resid_mid.3"),
    ],
)
def test_a_hookpoint_is_a_module_where_there_is_one(source, target, family, module):
    assert hookpoint(source, target, family) == module


def test_a_layer_of_many_is_read_alone_by_its_folder(tmp_path):
    dictionary = made("topk", "plt")
    Sparsify().write(job_of(dictionary), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["resid_post.0", "resid_post.1", "resid_post.2"]
    one = dictlearn.load(Path(tmp_path) / "resid_post.1")
    assert (one.kind, one.sources, one.targets) == ("transcoder", ("resid_post.1",), ("mlp_out.1",))


@pytest.mark.parametrize("exporter", EXPORTERS, ids=lambda one: one.name)
def test_a_standardised_site_is_held_by_saelens_alone(exporter, tmp_path):
    described = made("topk", "sae").to_json()
    site = f"{described['sources'][0]}:standardised"
    dictionary = from_json(described | {"sources": [site], "targets": [site]}).eval()
    if exporter.name != "saelens":
        said = exporter.refusal(dictionary, INFO)
        assert said == f"{exporter.name} can't say that {site} is standardised token by token"
        return
    assert exporter.refusal(dictionary, INFO) is None
    exporter.write(job_of(dictionary), tmp_path)
    cfg = json.loads((tmp_path / "cfg.json").read_text())
    assert cfg["normalize_activations"] == "layer_norm" and ":" not in cfg["metadata"]["hook_name"]
    assert dictlearn.load(tmp_path).sources == (site,)
