"""What holds for every dictionary, whatever its sparsity."""

from __future__ import annotations

import pytest
import torch

from dictlearn.dicts.description import from_json
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.sae import sae
from dictlearn.dicts.transcoder import transcoder
from dictlearn.types import ModelInfo
from tests.dictionaries import INFERENCE, SPARSITIES, activations, small_dictionary
from tests.train.test_fused_adam import SHAPES

INFO = ModelInfo("toy", None, "qwen3", n_layers=4, width=16, vocab_size=50, context_length=32)


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("skip", [False, True])
def test_folding_changes_units_and_nothing_else(sparsity, skip):
    """Input and output scales differ, as they do in a transcoder."""
    dictionary = small_dictionary(sparsity, sites=2, skip=skip, centre=False).eval()
    a = torch.tensor([0.25, 3.0], dtype=torch.float64)
    o = torch.tensor([7.0, 0.5], dtype=torch.float64)
    raw = activations(sites=2)
    if sparsity == "batchtopk":
        dictionary = dictionary.inference_form(lambda: [raw * a[:, None]])
    folded = dictionary.folded(a, o)
    normalised = dictionary(raw * a[:, None]) / o[:, None]
    torch.testing.assert_close(folded(raw), normalised)
    codes = folded.encode(raw), dictionary.encode(raw * a[:, None])
    assert torch.equal(codes[0].features, codes[1].features)


def test_features_that_layers_compare_are_the_same_ones_in_raw_units():
    """Sites differ in scale, so the largest features of all would not be."""
    dictionary = small_dictionary("topk", sites=2, centre=False).eval()
    dictionary.sparsity.across_layers = True
    a, o = (torch.tensor(scales).double() for scales in ([0.25, 3.0], [7.0, 0.5]))
    raw = activations(sites=2)
    folded = dictionary.folded(a, o)
    torch.testing.assert_close(folded(raw), dictionary(raw * a[:, None]) / o[:, None])
    back = folded.folded(1 / a, 1 / o)
    torch.testing.assert_close(back(raw), dictionary(raw))


def test_folding_an_autoencoder_folds_the_centre_too():
    dictionary = small_dictionary("topk").eval()
    scale = torch.tensor([0.2], dtype=torch.float64)
    raw = activations()
    torch.testing.assert_close(dictionary.folded(scale, scale)(raw), dictionary(raw * 0.2) / 0.2)


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_an_autoencoder_is_a_transcoder_whose_target_is_its_source(sparsity):
    one = small_dictionary(sparsity, centre=False)
    other = small_dictionary(
        sparsity, centre=False, kind="transcoder", sources=("mlp_in.0",), targets=("mlp_out.0",)
    )
    other.load_state_dict(one.state_dict())
    x = activations()
    gradients = []
    for dictionary in (one, other):
        loss = (dictionary(x) - x).square().sum()
        gradients.append((loss, *torch.autograd.grad(loss, [*dictionary.parameters()][:4])))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("sparsity", INFERENCE)
def test_sites_side_by_side_do_what_they_do_alone(sparsity):
    """Several sources are several dictionaries in one: nothing leaks between them."""
    together = small_dictionary(sparsity, sites=3)
    x = activations(sites=3)
    y_hat = together(x)
    for site in range(3):
        alone = small_dictionary(sparsity)
        state = {name: tensor[site : site + 1] for name, tensor in together.state_dict().items()}
        alone.load_state_dict(state)
        torch.testing.assert_close(alone(x[:, site : site + 1]), y_hat[:, site : site + 1])


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_nested_prefixes_add_up(sparsity):
    dictionary = small_dictionary(sparsity, prefixes=(5, 20, 40))
    x = activations()
    code = dictionary.encode_training(x).support
    outputs = dictionary.decode_prefixes(code, x)
    for width, y_hat in zip((5, 20, 40), outputs, strict=True):
        torch.testing.assert_close(y_hat, dictionary.decode(code.where(code.features < width), x))
    torch.testing.assert_close(outputs[-1], dictionary.decode(code, x))


def test_one_prefix_is_no_prefix():
    dictionary = small_dictionary(prefixes=(40,))
    x = activations()
    (y_hat,) = dictionary.decode_prefixes(dictionary.encode(x), x)
    assert torch.equal(y_hat, dictionary(x))


@pytest.mark.parametrize("sparsity", SPARSITIES)
def test_plain_json_rebuilds_the_same_dictionary(sparsity):
    dictionary = small_dictionary(sparsity, sites=2, skip=True)
    twin = from_json(dictionary.to_json()).double()
    twin.load_state_dict(dictionary.state_dict())
    x = activations(sites=2)
    assert torch.equal(twin(x), dictionary(x))


def test_json_names_a_sparsity_and_nothing_else():
    description = small_dictionary().to_json()
    description["sparsity"] = {"name": "os.system"}
    with pytest.raises(ValueError, match=r"'os.system' is not one of \['abstopk', 'batchtopk'"):
        from_json(description)


def test_decoder_rows_stay_at_norm_one():
    dictionary = small_dictionary().float()
    optimiser = torch.optim.Adam(dictionary.parameters(), lr=0.05)
    for _ in range(5):
        x = activations().float()
        (dictionary(x) - x).square().sum().backward()
        dictionary.decoder.project_gradient()
        radial = (dictionary.decoder.W_dec.grad * dictionary.decoder.W_dec).sum(-1)  # type: ignore
        assert radial.abs().max() < 1e-4
        optimiser.step()
        optimiser.zero_grad()
        dictionary.after_step()
        assert (dictionary.decoder.norms() - 1).abs().max() < 1e-6


def test_the_middle_layer_is_the_default():
    assert sae(INFO, SPARSITIES["topk"], k=4).sources == ("resid_post.1",)
    assert transcoder(INFO, SPARSITIES["topk"], k=4).targets == ("mlp_out.1",)
    assert sae(INFO, SPARSITIES["topk"], site="layers.2.mlp:input").sources == (
        "layers.2.mlp:input",
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 36}, "dict.layer=36: toy has layers 0 to 3"),
        ({"k": 193}, "dict.k=193: want more than 0 and at most dict.n_features=192"),
        ({"k": 0}, "dict.k=0: want more than 0"),
        ({"n_features": 0}, "dict.n_features=0: want at least 1"),
        ({"prefixes": [8, 4, 192]}, r"dict.prefixes=\[8, 4, 192\]: want ascending"),
        ({"prefixes": [0.25, 0.5]}, r"end with all dict.n_features=192"),
    ],
    ids=str,
)
def test_bad_options_get_one_sentence(options, message):
    with pytest.raises(ValueError, match=message):
        sae(INFO, SPARSITIES["topk"], **options)


def test_activations_of_another_width_are_refused():
    with pytest.raises(
        ValueError, match=r"shape \(50, 1, 8\): this sae reads \[tokens, width 16\] or "
    ):
        small_dictionary()(activations(width=8))


@pytest.mark.parametrize("sparsity", SPARSITIES)
@pytest.mark.parametrize("kind", SHAPES)
def test_a_models_precision_and_autocast_change_nothing(kind, sparsity):
    """What a model in bfloat16 gives is read as the float32 numbers that it is."""
    shape = SHAPES[kind]
    dictionary = Dictionary(shape, SPARSITIES[sparsity])
    x_NSD = torch.randn(48, len(shape.sources), shape.width).bfloat16()

    def outcome(x: torch.Tensor) -> list[torch.Tensor]:
        code = dictionary.encode(x)
        made = [code.pattern.columns, code.values, dictionary.decode(code, x)]
        if dictionary.layerwise and not shape.prefixes:
            codes = {
                s: dictionary.encode_source(x[:, s], s).code for s in range(len(shape.sources))
            }
            inputs = {s: x[:, s] for s in codes}
            last = len(shape.targets) - 1
            made += [dictionary.decode_target(last, codes, inputs)]
        return made

    expected = outcome(x_NSD.float())
    with torch.autocast("cpu", torch.bfloat16):
        within = outcome(x_NSD)
    for results in (within, outcome(x_NSD)):
        for got, wanted in zip(results, expected, strict=True):
            assert got.dtype == wanted.dtype and torch.equal(got, wanted)
