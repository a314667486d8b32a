"""The two halves of a sample share no document; a random dictionary is like the trained one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.explain.sample import Sample, random_like, take_sample
from dictlearn.lm.capture import batch_at
from dictlearn.lm.language_model import LanguageModel, freeze
from dictlearn.sources.tokens import TokenWindows
from dictlearn.sparsity.jumprelu import JumpReLU

BOS, PAD, VOCAB = 3, 4, 48


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB}
    ids = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": None}
    config = Qwen3Config(**sizes, **heads, **ids, max_position_embeddings=64)
    return freeze(Qwen3ForCausalLM(config), name="tiny")


@pytest.fixture(scope="module")
def windows() -> TokenWindows:
    random = torch.Generator().manual_seed(0)
    documents = [
        torch.cat([torch.tensor([BOS]), torch.randint(5, VOCAB, (n,), generator=random)])
        for n in (7, 30, 11, 2, 50, 18, 18, 18, 9, 40)
    ]
    starts = torch.tensor([0, *map(len, documents[:-1])]).cumsum(0)
    return TokenWindows(torch.cat(documents).int(), 16, frozenset({BOS, PAD}), PAD, starts)


def dictionary(k: float = 5.0) -> Dictionary:
    sites = ("resid_post.0",)
    shape = Shape("sae", sites, sites, width=16, n_features=64, k=k, centre=True)
    return Dictionary(shape, lambda **sizes: JumpReLU(**sizes, init_threshold=0.05)).requires_grad_(
        False
    )


@pytest.fixture(scope="module")
def taken(lm, windows) -> tuple[Sample, dict]:
    return take_sample(lm, {"own": dictionary()}, windows, 10_000, batch_windows=3)


def test_no_document_is_in_both_halves(taken):
    sample, _ = taken
    halves = [set(sample.documents_N[sample.to_score_N == side]) for side in (False, True)]
    assert halves[0] and halves[1] and not halves[0] & halves[1]
    assert sum(map(len, halves)) == 10


def test_every_token_but_the_special_ones_is_there_once(taken, windows):
    sample, _ = taken
    assert len(sample.places_N) == int(windows.kept(range(len(windows))).sum())
    assert not np.isin(sample.tokens_WP.ravel()[sample.places_N], [BOS, PAD]).any()


def test_documents_start_behind_their_bos(taken):
    sample, _ = taken
    starts, tokens = sample.starts_WP.ravel(), sample.tokens_WP.ravel()
    behind = np.r_[False, tokens[:-1] == BOS]
    whole = np.arange(len(tokens)) % 16 > 0  # a BOS at a window's end is not seen from the next
    assert (starts == behind)[whole].all() and starts.sum() >= 8


def test_firings_are_those_of_the_code(taken, lm, windows):
    sample, firings = taken
    torch.manual_seed(0)
    tokens_BP = windows.window_batch(range(len(windows)))
    x_NSD = batch_at(lm, tokens_BP, windows.kept(range(len(windows))), ("resid_post.0",)).x_NSD
    both = {"a": dictionary()}
    _, again = take_sample(lm, both, windows, 10_000, batch_windows=5)
    dense: Tensor = both["a"].encode(x_NSD).dense()
    for feature in range(64):
        tokens, values = again["a"].of(0, feature)
        expected = dense[:, 0, feature]
        assert tokens.tolist() == expected.nonzero().flatten().tolist()
        assert values == pytest.approx(expected[expected > 0].numpy(), rel=1e-4)


def test_a_random_dictionary_has_the_l0_of_the_trained_one(lm, windows):
    tokens_BP = windows.window_batch(range(len(windows)))
    x_NSD = batch_at(lm, tokens_BP, windows.kept(range(len(windows))), ("resid_post.0",)).x_NSD
    x_NSD = 3 * x_NSD  # so that some features fire on every token
    own = dictionary()
    random = random_like(own, x_NSD)
    l0 = own.encode(x_NSD).l0_NS.double().mean()
    assert float(random.encode(x_NSD).l0_NS.double().mean()) == pytest.approx(float(l0), abs=0.51)
    assert torch.equal(random.encoder.W_enc, random_like(own, x_NSD).encoder.W_enc)
    assert random.encoder.pre(random.read(x_NSD)).mean(0).abs().max() < 1e-4
