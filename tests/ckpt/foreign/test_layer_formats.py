"""Folders as SAELens, sparsify and dictionary_learning themselves write them, whole and damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

import dictlearn
from dictlearn import export
from dictlearn.ckpt.files import write_tensors
from tests.export.test_circuit_tracer import built
from tests.export.test_circuit_tracer import job as set_job
from tests.export.test_layer_formats import job_of, made

D, F = 6, 10
LENS = {
    "architecture": "standard",
    "d_in": D,
    "d_sae": F,
    "dtype": "float32",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "metadata": {
        "sae_lens_version": "6.1.0",
        "hook_name": "blocks.2.hook_resid_pre",
        "model_name": "gpt2",
    },
}


def weights(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    made = {
        "W_enc": torch.randn(D, F),
        "b_enc": torch.randn(F),
        "W_dec": torch.randn(F, D),
        "b_dec": torch.randn(D),
    }
    return made | more


def lens(folder: Path, tensors: dict[str, torch.Tensor] | None = None, **cfg) -> Path:
    folder.mkdir(exist_ok=True)
    write_tensors(folder / "sae_weights.safetensors", tensors or weights())
    (folder / "cfg.json").write_text(json.dumps({**LENS, **cfg}))
    return folder


def test_saelens_standard(tmp_path):
    t = weights()
    dictionary = dictlearn.load(lens(tmp_path, t))
    x = torch.randn(7, D)
    f = torch.relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    torch.testing.assert_close(dictionary.encode(x[:, None]).dense()[:, 0], f)
    torch.testing.assert_close(dictionary(x[:, None])[:, 0], f @ t["W_dec"] + t["b_dec"])
    assert dictionary.sources == ("resid_pre.2",) and dictionary.kind == "sae"


def test_saelens_topk_compares_by_decoder_norm_where_it_says_so(tmp_path):
    t = weights()
    cfg = {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}
    dictionary = dictlearn.load(lens(tmp_path, t, **cfg))
    x, norms = torch.randn(7, D), t["W_dec"].norm(dim=1)
    pre = torch.relu(((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms)
    f = pre * (pre >= pre.topk(3).values[:, -1:])
    torch.testing.assert_close(dictionary.encode(x[:, None]).dense()[:, 0], f)
    y = (f / norms) @ t["W_dec"] + t["b_dec"]
    torch.testing.assert_close(dictionary(x[:, None])[:, 0], y)


def test_saelens_before_6(tmp_path):
    old = {
        "hook_point": "blocks.8.hook_resid_post",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 2},
        "apply_b_dec_to_input": False,
        "normalize_activations": False,
        "model_name": "gpt2-small",
    }
    lens(tmp_path)
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    dictionary = dictlearn.load(tmp_path)
    assert dictionary.sources == ("resid_post.8",) and not dictionary.shape.centre
    assert int(dictionary.encode(torch.randn(9, 1, D)).l0_NS.max()) <= 2
    assert dictionary.provenance == {"format": "saelens", "model": "gpt2-small"}


def test_saelens_scale_beside_the_weights_is_folded_in(tmp_path):
    t = weights()
    lens(tmp_path, t, normalize_activations="expected_average_only_in")
    with pytest.raises(ValueError, match=r"no activation_scaler\.json"):
        dictlearn.load(tmp_path)
    (tmp_path / "activation_scaler.json").write_text('{"scaling_factor": 0.25}')
    x = torch.randn(7, D)
    f = torch.relu((x / 4 - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    y = 4 * (f @ t["W_dec"] + t["b_dec"])
    torch.testing.assert_close(dictlearn.load(tmp_path)(x[:, None])[:, 0], y)


def test_saelens_layer_norm_is_a_standardised_site(tmp_path):
    t = weights()
    dictionary = dictlearn.load(lens(tmp_path, t, normalize_activations="layer_norm"))
    assert dictionary.sources == dictionary.targets == ("resid_pre.2:standardised",)
    z = torch.randn(7, D)
    f = torch.relu((z - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    torch.testing.assert_close(dictionary(z), f @ t["W_dec"] + t["b_dec"])


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"architecture": "temporal"}, "architecture=temporal: its code of a token depends"),
        ({"architecture": "batchtopk"}, "a training checkpoint"),
        ({"architecture": "new"}, "architecture=new: want one of standard, topk"),
        (
            {"normalize_activations": "constant_norm_rescale"},
            "constant_norm_rescale depends on each token",
        ),
        ({"reshape_activations": "hook_z"}, "all heads put side by side"),
        ({"architecture": "topk", "k": 11}, "k=11; want 1 to the 10 features"),
        ({"architecture": "topk", "k": "2"}, "k='2'; want int"),
        (
            {"architecture": "jumprelu"},
            "want tensors W_enc, W_dec, b_dec, b_enc, threshold; found",
        ),
        ({"metadata": []}, "metadata=.*; want dict"),
    ],
    ids=str,
)
def test_what_saelens_can_say_and_we_cannot_is_refused(cfg, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        dictlearn.load(lens(tmp_path, **cfg))


def test_shapes_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"W_dec has shape \[10, 7\].*want \[10, 6\]"):
        dictlearn.load(lens(tmp_path, weights(W_dec=torch.randn(F, D + 1))))
    with pytest.raises(ValueError, match="'b_enc' holds NaN or Inf"):
        dictlearn.load(lens(tmp_path, weights(b_enc=torch.full((F,), torch.nan))))
    with pytest.raises(ValueError, match="W_enc or W_dec of shape .* want a matrix"):
        dictlearn.load(lens(tmp_path, weights(W_enc=torch.randn(F))))


def test_layers_of_one_shape_are_one_dictionary_and_others_are_refused(tmp_path):
    for layer in (10, 9):
        about = LENS["metadata"] | {"hook_name": f"blocks.{layer}.hook_resid_pre"}
        lens(tmp_path / f"layer_{layer}", metadata=about)
    dictionary = dictlearn.load(tmp_path)
    assert dictionary.sources == ("resid_pre.9", "resid_pre.10") and dictionary.kind == "plt"
    lens(tmp_path / "layer_11", architecture="topk", k=3)
    with pytest.raises(
        ValueError, match="layer_11: its shape or sparsity differs from that of layer_9"
    ):
        dictlearn.load(tmp_path)


def coder(folder: Path, **cfg) -> Path:
    folder.mkdir(exist_ok=True)
    tensors = {
        "encoder.weight": torch.randn(F, D),
        "encoder.bias": torch.randn(F),
        "W_dec": torch.randn(F, D),
        "b_dec": torch.randn(D),
    }
    if cfg.get("skip_connection"):
        tensors["W_skip"] = torch.randn(D, D)
    write_tensors(folder / "sae.safetensors", tensors)
    (folder / "cfg.json").write_text(json.dumps({"d_in": D, "k": 3, **cfg}))
    return folder


@pytest.mark.parametrize(
    ("name", "cfg", "sites"),
    [
        ("layers.3", {}, ("resid_post.3", "resid_post.3")),
        ("h.3.mlp", {}, ("mlp_out.3", "mlp_out.3")),
        ("h.3.attn", {}, ("attn_out.3", "attn_out.3")),
        ("layers.3.mlp", {"transcode": True, "skip_connection": True}, ("mlp_in.3", "mlp_out.3")),
        ("layers.3.mlp.act", {}, ("layers.3.mlp.act:output",) * 2),
    ],
)
def test_sparsify_names_sites_by_folder(name, cfg, sites, tmp_path):
    dictionary = dictlearn.load(coder(tmp_path / name, **cfg))
    assert (*dictionary.sources, *dictionary.targets) == sites
    assert dictionary.shape.centre is not cfg.get("transcode", False)
    assert int(dictionary.encode(torch.randn(9, 1, D)).l0_NS.max()) <= 3


def test_sparsify_groupmax_is_refused(tmp_path):
    with pytest.raises(ValueError, match="activation=groupmax is no sparsity here"):
        dictlearn.load(coder(tmp_path, activation="groupmax"))


def learnt(folder: Path, name: str, tensors: dict[str, torch.Tensor], **trainer) -> Path:
    torch.save(tensors, folder / "ae.pt")
    settings = {"dict_class": name, "lm_name": "org/model", "layer": 4, **trainer}
    (folder / "config.json").write_text(json.dumps({"trainer": settings, "buffer": {}}))
    return folder


def linear(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    made = {
        "encoder.weight": torch.randn(F, D),
        "encoder.bias": torch.randn(F),
        "decoder.weight": torch.randn(D, F),
    }
    return made | more


def test_dictionary_learning_autoencoder_is_read_with_the_norms_its_loader_gives(tmp_path):
    t = linear(bias=torch.randn(D))
    dictionary = dictlearn.load(learnt(tmp_path, "AutoEncoder", t))
    x, norms = torch.randn(7, D), t["decoder.weight"].norm(dim=0)
    f = torch.relu((x - t["bias"]) @ t["encoder.weight"].T + t["encoder.bias"])
    torch.testing.assert_close(dictionary.encode(x[:, None]).dense()[:, 0], f * norms)
    y = f @ t["decoder.weight"].T + t["bias"]
    torch.testing.assert_close(dictionary(x[:, None])[:, 0], y)
    assert dictionary.sources == ("resid_post.4",)
    assert dictionary.provenance["model"] == "org/model"


def test_dictionary_learning_matryoshka_keeps_its_groups(tmp_path):
    t = weights(k=torch.tensor(3), threshold=torch.tensor(0.5), group_sizes=torch.tensor([2, 8]))
    dictionary = dictlearn.load(learnt(tmp_path, "MatryoshkaBatchTopKSAE", t))
    assert dictionary.shape.prefixes == (2, 10) and dictionary.shape.k == 3
    x = torch.randn(7, D)
    pre = torch.relu((x - t["b_dec"]) @ t["W_enc"] + t["b_enc"])
    f = pre * (pre > 0.5)
    torch.testing.assert_close(dictionary.encode(x[:, None]).dense()[:, 0], f)


def test_a_threshold_that_was_never_set_is_none(tmp_path):
    t = linear(b_dec=torch.randn(D), k=torch.tensor(3), threshold=torch.tensor(-1.0))
    dictionary = dictlearn.load(learnt(tmp_path, "BatchTopKSAE", t))
    assert bool((dictionary.encode(torch.randn(5, 1, D)).values > 0).all())


class Trap:
    def __reduce__(self):
        return (open, ("trapped", "w"))


def test_a_pickle_runs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    learnt(tmp_path, "AutoEncoder", linear(bias=torch.randn(D)))
    torch.save({"bias": Trap()}, tmp_path / "ae.pt")
    with pytest.raises(ValueError, match=r"ae\.pt: is not a readable file of tensors"):
        dictlearn.load(tmp_path)
    assert not (tmp_path / "trapped").exists()


def test_dictionary_learning_says_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="want tensors encoder.weight"):
        dictlearn.load(learnt(tmp_path, "AutoEncoderTopK", linear(), k=3))
    with pytest.raises(ValueError, match="dict_class=IdentityDict; want one of AutoEncoder"):
        dictlearn.load(learnt(tmp_path, "IdentityDict", linear()))


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, dtype):
    with pytest.raises(ValueError, match=r"'W_enc' holds \w+ numbers; want floating-point ones"):
        dictlearn.load(lens(tmp_path, weights(W_enc=torch.ones(D, F, dtype=dtype))))


@pytest.mark.parametrize(
    ("flag", "refused"),
    [
        ({"signed": True}, "signed=True is unknown and may change what"),
        ({"post_scale": 2.0}, "post_scale=2.0 is unknown"),
        ({"\x1b[31m": "x"}, r"\\x1b\[31m='x' is unknown"),
        ({"signed": False, "other": None, "mode": "none", "list": []}, None),
    ],
    ids=str,
)
@pytest.mark.parametrize("format", ["saelens", "sparsify", "dictionary_learning", "circuit_tracer"])
def test_a_flag_that_is_not_known_is_refused_by_name(tmp_path, format, flag, refused):
    layer = format != "circuit_tracer"
    written(tmp_path / "d", format, made("topk", "sae") if layer else built("plt"))
    path = next(p for p in (tmp_path / "d").rglob("c*") if p.suffix in (".json", ".yaml"))
    read, write = (json.loads, json.dumps) if layer else (yaml.safe_load, yaml.safe_dump)
    cfg = read(path.read_text())
    cfg.get("trainer", cfg).update(flag)
    path.write_text(write(cfg))
    if refused is None:
        dictlearn.load(tmp_path / "d")
    else:
        with pytest.raises(ValueError, match=refused):
            dictlearn.load(tmp_path / "d")


def written(folder: Path, format: str, dictionary) -> None:
    folder.mkdir()
    job = job_of(dictionary) if format != "circuit_tracer" else set_job(dictionary)
    export.registry()[format]().write(job, folder)
