"""Other parameters, the same function."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dictlearn
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.equivalent import join_layers, recentred, renormed, split_layers
from dictlearn.dicts.start import check_start
from dictlearn.export.dictionary_learning import DictionaryLearning
from dictlearn.export.protocol import why_not
from dictlearn.export.saelens import SAELens
from dictlearn.export.sparsify import Sparsify
from dictlearn.sparsity import registry
from dictlearn.sparsity.protocol import Sparsity
from dictlearn.types import Encoding, ModelInfo
from tests.dictionaries import INFERENCE, SPARSITIES, activations, small_dictionary

INFO = ModelInfo("org/model", None, "qwen3", 4, 16, 100, 128)


def stretched(sparsity: str, **shape) -> Dictionary:
    """Decoder norms from 0.5 to 2."""
    dictionary = small_dictionary(sparsity, **shape).eval()
    with torch.no_grad():
        dictionary.decoder.W_dec.mul_(torch.linspace(0.5, 2, dictionary.n_features)[:, None])
        for name, parameter in dictionary.sparsity.named_parameters():
            parameter.uniform_(0.1, 0.5) if "threshold" in name else parameter.normal_(std=0.3)
    return dictionary


def assert_same(a: Dictionary, b: Dictionary, sites: int = 1) -> None:
    x_NSD = activations(sites=sites)
    assert a.encode(x_NSD).values.numel() > 20
    torch.testing.assert_close(a(x_NSD), b(x_NSD))
    assert torch.equal(a.encode(x_NSD).features, b.encode(x_NSD).features)


@pytest.mark.parametrize("sparsity", INFERENCE)
@pytest.mark.parametrize("centre", [True, False])
def test_a_bias_moves_between_input_and_encoder(sparsity, centre):
    dictionary = stretched(sparsity, centre=centre)
    moved = recentred(dictionary, not centre)
    assert moved.shape.centre is not centre
    assert_same(dictionary, moved)
    x_NSD = activations()
    torch.testing.assert_close(dictionary.encode(x_NSD).dense(), moved.encode(x_NSD).dense())


def test_a_bias_moves_where_a_code_is_shared():
    dictionary = small_dictionary(sites=3, link="shared").eval()
    assert_same(dictionary, recentred(dictionary, False), sites=3)


@pytest.mark.parametrize("sparsity", INFERENCE)
def test_features_of_norm_one_are_the_same_features(sparsity):
    dictionary = stretched(sparsity, sites=2)
    try:
        unit = renormed(dictionary)
    except ValueError as error:
        assert "because it compares them" in str(error)
        dictionary = small_dictionary(sparsity, sites=2).eval()
        dictionary.decoder.normalise()
        dictionary.decoder.W_dec.data.mul_(3)
        unit = renormed(dictionary)
    torch.testing.assert_close(unit.decoder.norms(), torch.ones_like(unit.decoder.norms()))
    assert_same(dictionary, unit, sites=2)


@pytest.mark.parametrize("sparsity", ["topk", "batchtopk", "abstopk", "sparsemax"])
def test_norms_that_differ_are_refused_where_features_are_compared(sparsity):
    with pytest.raises(ValueError, match=rf"cannot become 1: .* 0\.5 to 2 .* {sparsity} takes"):
        renormed(stretched(sparsity))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("alike", [True, False])
def test_a_sparsity_rescaled_takes_what_it_took(sparsity, alike):
    """Of features that are as many times as large: each is that many times as active."""
    dictionary = stretched(sparsity, sites=2)
    factor_SF = 0.5 + torch.rand(2, 1 if alike else dictionary.n_features, dtype=torch.float64)
    scaled = small_dictionary(sparsity, sites=2).eval()
    scaled.load_state_dict(dictionary.state_dict())
    try:
        scaled.sparsity = scaled.sparsity.rescaled(factor_SF)
    except ValueError as error:
        assert not alike and "because it compares them" in str(error)
        return
    scaled.encoder.W_enc.data.mul_(factor_SF[..., None])
    scaled.encoder.b_enc.data.mul_(factor_SF)
    x = activations(sites=2)
    torch.testing.assert_close(scaled.encode(x).dense(), dictionary.encode(x).dense() * factor_SF)


def test_what_a_sparsity_does_not_say_is_refused_with_what_to_define():
    class Undecided(Sparsity):
        """Says no more than it must."""

        name = "undecided"

        def __init__(self, n_sources: int, n_features: int):
            super().__init__()
            self.offset_SF = torch.nn.Parameter(torch.zeros(n_sources, n_features))

        def forward(self, x_NSD, encoder, source=None):
            code = encoder.at(x_NSD, encoder.above(x_NSD, self.offset_SF.detach()))
            return Encoding(code, code, code.values)

        def rescaled(self, factor_SF):
            return self

        def options(self):
            return {}

    shape = small_dictionary().shape
    dictionary = Dictionary(shape, Undecided)
    with pytest.raises(ValueError, match=r"sparsity=undecided: .*; want Undecided\.shifted"):
        recentred(dictionary, False)
    with pytest.raises(ValueError, match=r"init=a: sparsity=undecided: .* want Undecided\.shifted"):
        check_start(Dictionary(replace(shape, centre=False), Undecided), dictionary, "init=a")
    with pytest.raises(
        ValueError, match=r"init=a: its sparsity is topk, whose parameters this run's undecided"
    ):
        check_start(dictionary, small_dictionary(), "init=a")
    with pytest.raises(ValueError, match=r"stores; want Undecided\.entries"):
        dictionary.sparsity.entries(4)
    for exporter in (SAELens(), Sparsify(), DictionaryLearning()):
        reason = why_not(exporter, dictionary, INFO)
        assert reason is not None and "these are undecided" in reason


def test_nobody_asks_a_sparsity_which_class_it_is():
    """Outside of sparsity/: what is asked of all is a method, what a format names goes by name."""
    classes = {kind.__name__ for kind in registry().values()}
    asked = []
    package = Path(dictlearn.__file__).parent
    for path in sorted(package.rglob("*.py")):
        if path.parent == package / "sparsity":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            parts: list[ast.AST] = []
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                parts = [node.args[1]]
            if isinstance(node, ast.MatchClass):
                parts = [node.cls]
            if isinstance(node, ast.Compare):  # type(sparsity) is TopK
                parts = [node.left, *node.comparators]
            inner = [one for part in parts for one in ast.walk(part)]
            names = {getattr(one, "id", getattr(one, "attr", "")) for one in inner}
            asked += [f"{path.name}: {name}" for name in sorted(names & classes)]
    assert asked == []


@pytest.mark.parametrize("sparsity", INFERENCE)
def test_parts_of_layers_put_together_are_the_whole(sparsity):
    names = {"kind": "plt", "centre": False, "skip": True}
    dictionary = stretched(sparsity, sites=3, **names)
    layers = split_layers(dictionary)
    assert [layer.sources for layer in layers] == [(f"resid_post.{i}",) for i in range(3)]
    assert layers[0].kind == "sae"
    x_NSD = activations(sites=3)
    alone = torch.cat([layer(x_NSD[:, i : i + 1]) for i, layer in enumerate(layers)], dim=1)
    torch.testing.assert_close(alone, dictionary(x_NSD))
    assert_same(dictionary, join_layers(layers, "plt"), sites=3)
