"""A saved dictionary of somebody else: nothing in it is believed before it is checked."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dictlearn.ckpt.dictionary import load_dictionary, save_dictionary
from dictlearn.dicts.clt import clt
from dictlearn.dicts.molt import molt
from dictlearn.dicts.sae import sae
from dictlearn.sparsity.jumprelu import JumpReLU
from dictlearn.sparsity.topk import TopK
from dictlearn.types import ModelInfo

INFO = ModelInfo(
    "toy", revision=None, family="qwen3", n_layers=2, width=8, vocab_size=50, context_length=16
)
BIG = 10**9


@pytest.fixture
def theirs(tmp_path) -> Path:
    """As from a stranger: format 1 has no hash, and there is no manifest."""
    return stripped(sae(INFO, partial(TopK, k=2), layer=1, n_features=16, k=2), tmp_path / "d")


def stripped(dictionary, folder: Path) -> Path:
    save_dictionary(dictionary, folder, {"model": "toy"})
    (folder / "manifest.json").unlink()
    edit(folder, lambda d: d.pop("sha256"))
    edit(folder, lambda d: d.update(format=1))
    return folder


def edit(folder: Path, change) -> None:
    description = json.loads((folder / "dictionary.json").read_text())
    change(description)
    (folder / "dictionary.json").write_text(json.dumps(description))


ODD = {
    # what is not what the tensors are
    "n_features": [BIG, 10**400, 3_000_000, 17, 0, -1, 1.5, "16", True, None, [16]],
    "width": [BIG, 0, -8, 8.0, "8"],
    "sources": [[], ["resid_post.1"] * 2, ["resid_post.1"] * 100_000, "resid_post.1", [1], [""]],
    "targets": [[], ["a"] * BIG.bit_length(), {"a": 1}, ["\x1b]0;x\x07"], ["x" * 1000]],
    # what is of another type, or out of range
    "kind": [["sae"], 5, None, "[/x]", "\x1b[31m", "a b", "x" * 1000, ""],
    "k": [0, -1, 17, BIG, "2", None, True, [2]],
    "centre": [1, "yes", None],
    "skip": [True, "no"],
    "link": ["lower", "shared", "transforms", "nowhere", 3, None],
    "window": [0, "all", 1.5],
    "norm": ["max", 7],
    "prefixes": [[4, 8], [0.5, 1], "all", [[16]], 16],
    "ranks": [[1] * 16, [BIG], "x", [[1]], list(range(1, 2000))],
    "encoder_scale": ["1", None, [1.0]],
    "sparsity": [
        *({}, None, "topk", {"name": 5}, {"name": "os.system"}, {"name": "topk"}),
        *({"name": "topk", "k": k} for k in (0, -1, 17, 1.5, "2", None, True, BIG)),
        {"name": "topk", "k": 2, "n_features": 4},
        {"name": "topk", "k": 2, "evil": 1},
        {"name": "batchtopk", "k": 0.0},
        {"name": "jumprelu", "bandwidth": -1.0},
        {"name": "jumprelu", "bandwidth": "wide"},
        {"name": "jumprelu", "log_threshold": 1},
    ],
    "_target_": ["os.abort"],
}


@pytest.mark.parametrize("key", ODD)
def test_what_a_description_may_not_say_is_named(theirs, key):
    whole = (theirs / "dictionary.json").read_text()
    for value in ODD[key]:
        edit(theirs, lambda d, value=value: d["dictionary"].update({key: value}))
        with pytest.raises(ValueError, match=r"dictionary\.(json|safetensors)") as caught:
            load_dictionary(theirs)
        sentence = str(caught.value)
        assert len(sentence) < 1500 and sentence.isprintable(), value
        (theirs / "dictionary.json").write_text(whole)
    assert load_dictionary(theirs).n_features == 16


@pytest.mark.parametrize(
    "key", ["kind", "sources", "targets", "width", "n_features", "k", "sparsity"]
)
def test_what_a_description_must_say_is_named(theirs, key):
    edit(theirs, lambda d: d["dictionary"].pop(key))
    with pytest.raises(ValueError, match=key):
        load_dictionary(theirs)


@pytest.mark.parametrize("odd", [5, [1], "x", None])
def test_provenance_is_an_object(theirs, odd):
    edit(theirs, lambda d: d.update(training=odd))
    with pytest.raises(ValueError, match="training=.*: want an object"):
        load_dictionary(theirs)
    edit(theirs, lambda d: d.update(training={}, dictionary=odd))
    with pytest.raises(ValueError, match="dictionary=.*: want an object"):
        load_dictionary(theirs)


def test_nothing_is_made_before_the_tensors_have_said_their_sizes(theirs, monkeypatch):
    """Of the sizes that a kilobyte of JSON can name, a GB and more would be drawn at random."""
    made = []
    monkeypatch.setattr(torch.nn.Parameter, "__new__", lambda *a, **k: made.append(a))
    for key, value in {"n_features": 3_000_000, "width": BIG, "sources": ["a"] * 900}.items():
        edit(theirs, lambda d, key=key, value=value: d["dictionary"].update({key: value}))
        edit(theirs, lambda d: d["dictionary"].update(targets=d["dictionary"]["sources"]))
        with pytest.raises(ValueError, match="does not fit: encoder.W_enc has shape"):
            load_dictionary(theirs)
    assert not made


def test_ranks_that_no_tensors_have_are_refused(tmp_path):
    folder = stripped(
        molt(INFO, partial(TopK, k=2), layer=1, ranks=[2] * 4 + [1] * 4, k=2), tmp_path / "m"
    )
    load_dictionary(folder)
    edit(folder, lambda d: d["dictionary"].update(ranks=[1, 2] * 4))
    with pytest.raises(ValueError, match="ranks=.*has no tensors of all of these"):
        load_dictionary(folder)


DAMAGE = {
    "NaN": (lambda w: w.view(-1)[5:6].fill_(float("nan")), "holds NaN or Inf; want finite"),
    "Inf": (lambda w: w.view(-1)[5:6].fill_(float("-inf")), "holds NaN or Inf; want finite"),
    "int32": (lambda w: w.int(), "holds int32 numbers; want floating-point ones"),
    "bool": (lambda w: w > 0, "holds bool numbers; want floating-point ones"),
    "beyond float32": (lambda w: w.double() * 1e300, "holds NaN or Inf; want finite"),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("tensor", ["encoder.W_enc", "decoder.b_dec", "sparsity.raw_threshold_SF"])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path, what, tensor):
    folder = stripped(sae(INFO, JumpReLU, layer=1, n_features=16, k=2), tmp_path / "d")
    tensors = load_file(folder / "dictionary.safetensors")
    damage, says = DAMAGE[what]
    changed = damage(torch.ones_like(tensors[tensor]))
    tensors[tensor] = (
        changed
        if changed.shape == tensors[tensor].shape
        else torch.full_like(tensors[tensor], float(changed[0]))
    )
    save_file(tensors, folder / "dictionary.safetensors")
    with pytest.raises(ValueError, match=f"'{tensor}' {says}"):
        load_dictionary(folder)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_precision_are_read_as_float32(tmp_path, dtype):
    dictionary = sae(INFO, partial(TopK, k=2), layer=1, n_features=16, k=2).to(dtype)
    save_dictionary(dictionary, tmp_path / "d", {})
    (tmp_path / "d/manifest.json").unlink()  # so the hash is looked at
    loaded = load_dictionary(tmp_path / "d")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.encoder.W_enc, dictionary.encoder.W_enc.float())


def test_tensors_too_many_or_too_few_are_named(theirs):
    tensors = load_file(theirs / "dictionary.safetensors")
    save_file(tensors | {"\x1b[31m": torch.ones(2)}, theirs / "dictionary.safetensors")
    with pytest.raises(ValueError, match=r"has a tensor '\\x1b\[31m', which is no part of it"):
        load_dictionary(theirs)
    tensors.pop("decoder.b_dec")
    save_file(tensors, theirs / "dictionary.safetensors")
    with pytest.raises(ValueError, match=r"decoder.b_dec is not there; want \[1, 8\]"):
        load_dictionary(theirs)


@pytest.mark.parametrize("options", [{}, {"tied": True}, {"window": 1, "skip": True}])
def test_loading_draws_nothing_and_gives_what_was_saved(tmp_path, options):
    dictionary = clt(INFO, partial(TopK, k=2), n_features=16, k=2, **options)
    save_dictionary(dictionary, tmp_path / "d", {})
    before = torch.get_rng_state()
    loaded = load_dictionary(tmp_path / "d")
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    for name, tensor in dictionary.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
