"""A dictionary that is read by a wrong convention: which other one fits is found, and named."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dictlearn.dicts.description import from_json
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.evals import conventions
from dictlearn.evals.conventions import described, others, verdict
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from tests.evals.conftest import WIDTH, ToyWindows, _tiny_lm
from tests.families import example

SITE = "resid_post.0"


@pytest.fixture
def lm() -> LanguageModel:
    """Its activations have a mean that is far from 0, as those of large models have."""
    lm = _tiny_lm()
    with torch.no_grad():
        lm.model.get_parameter("model.embed_tokens.weight").add_(3.0)
    return lm


def identity(site: str = SITE, **described) -> Dictionary:
    """f = relu(+-(x - b)), y = +-f + b: exact, as it is read here."""
    rows = torch.cat([torch.eye(WIDTH), -torch.eye(WIDTH)])
    about = {
        "kind": "sae",
        "sources": [site],
        "targets": [site],
        "width": WIDTH,
        "n_features": 2 * WIDTH,
        "k": 1.0,
        "centre": True,
        "unit_norm": False,
        "sparsity": {"name": "relu"},
        **described,
    }
    dictionary = from_json(about).eval().requires_grad_(False)
    if dictionary.n_features == len(rows):
        dictionary.encoder.W_enc[0], dictionary.decoder.W_dec[0] = rows, rows
    dictionary.decoder.b_dec.fill_(2.0)
    return dictionary


def activations(lm) -> torch.Tensor:
    windows = ToyWindows()
    return capture(lm, windows.tokens_WP, [SITE])[SITE][windows.kept(range(len(windows)))]


def figures(dictionary: Dictionary, lm) -> tuple[float, list[conventions.Reading]]:
    """(its own FVU, the other readings)."""
    at = activations(lm)
    own = conventions._measured("", dictionary, at[:, None], at[:, None])
    return own.fvu, others(dictionary, lm, ToyWindows())


def test_a_bias_that_was_not_subtracted_is_named(lm):
    wrong = identity(centre=False)
    fvu, found = figures(wrong, lm)
    assert fvu > 1 and found[0].fvu < 1e-6
    assert found[0].words == "with b_dec subtracted from the input"
    said = verdict(fvu, found)
    assert "is above 1" in said and "With b_dec subtracted from the input it would be" in said


def test_a_scale_that_was_left_out_is_named(lm):
    """Made for activations of mean norm sqrt(D), as OpenMOSS trains: its bias is in those units."""
    at = activations(lm)
    scale = WIDTH**0.5 / at.norm(dim=-1).mean()
    wrong = identity(sparsity={"name": "topk", "k": 4, "across_layers": False})
    wrong.decoder.b_dec.copy_((at.mean(0) * scale)[None])
    fvu, found = figures(wrong, lm)
    assert fvu > 1 and found[0].fvu < 0.8
    assert found[0].words == f"with activations scaled to a mean norm of sqrt({WIDTH})"


def test_a_scale_that_a_reader_applied_and_should_not_have_is_named(lm):
    right = identity(sparsity={"name": "topk", "k": 4, "across_layers": False})
    right.decoder.b_dec.copy_(activations(lm).mean(0)[None])
    wrong = right.folded(torch.tensor([0.1]), torch.tensor([0.1]))
    wrong.provenance = {"input_scale": 0.1, "output_scale": 0.1}
    fvu, found = figures(wrong, lm)
    assert fvu > 1 and found[0].words == "without that scale" and found[0].fvu < 0.8


def test_topk_that_was_read_as_relu_is_named(lm):
    torch.manual_seed(0)
    at = activations(lm)
    wrong = identity(n_features=len(at), k=1.0)
    wrong.decoder.b_dec.copy_(at.mean(0)[None])
    rows = torch.nn.functional.normalize(at - at.mean(0), dim=-1)
    wrong.encoder.W_enc[0], wrong.decoder.W_dec[0] = rows, rows
    wrong.shape = replace(wrong.shape, k=2.0)
    fvu, found = figures(wrong, lm)
    assert fvu > 1
    assert found[0].words == "with the 2 largest values of a token kept" and found[0].fvu < 1
    assert found[0].l0 == 2


def test_the_other_end_of_a_block_is_tried(lm):
    places = conventions._places(identity(), lm)
    assert places["read and written at the block's other end"][0] == ("resid_pre.0",)
    places = conventions._places(identity("mlp_norm.0"), lm)
    assert places["read after the gain of the norm"][0] == ("mlp_in.0",)


def test_where_none_fits_it_says_so(lm):
    found = [conventions.Reading("with b_dec subtracted from the input", 3.0, 4.0)]
    said = verdict(7.5, found)
    assert "FVU 7.5 is above 1" in said and "None of 1 other conventions brings it below 1" in said


@pytest.mark.parametrize(
    ("sparsity", "says"),
    [
        ({"name": "relu"}, "every positive value fires"),
        (
            {"name": "topk", "k": 3, "across_layers": False},
            "the 3 largest positive values of a token",
        ),
        (
            {"name": "jumprelu", "bandwidth": 0.1, "log_threshold": False},
            r"above its feature's threshold \(median 0.1\)",
        ),
    ],
    ids=str,
)
def test_what_is_applied_is_one_sentence(sparsity, says):
    dictionary = identity(sparsity=sparsity)
    said = described(dictionary)
    assert said.startswith("Convention: b_dec is subtracted from the input; no scale; ")
    assert says.replace("\\", "") in said and "special tokens are left out" in said
    dictionary.provenance = {"input_scale": 0.5, "output_scale": 0.25}
    assert "multiplied by 0.5 and the output divided by 0.25" in described(dictionary)


def test_the_point_before_a_norm_behind_a_module_is_tried():
    """Gemma's sandwich: some tools' mlp_out is the module's own output."""
    gemma = example("gemma2").lm
    name = "written before the norm behind the module"
    module, attention = "model.layers.1.mlp:output", "model.layers.1.self_attn:output"
    assert conventions._places(identity("mlp_out.1"), gemma)[name][1] == (module,)
    assert conventions._places(identity("attn_out.1"), gemma)[name][1] == (attention,)
    assert name not in conventions._places(identity("mlp_out.1"), example("qwen3").lm)


def test_tokens_that_were_not_standardised_are_named(lm):
    """TopK of z = (x - mean) / std, as of ESMC and SAELens' layer_norm."""
    wrong = identity(sparsity={"name": "topk", "k": 12, "across_layers": False})
    wrong.decoder.b_dec.zero_()
    fvu, found = figures(wrong, lm)
    standardised = next(one for one in found if one.words == "with each token standardised")
    assert fvu > 1 and standardised.fvu < 1
    right = identity(f"{SITE}:standardised")
    assert "each token is standardised" in described(right)
    assert conventions._places(right, lm)["with tokens not standardised"][0] == (SITE,)
