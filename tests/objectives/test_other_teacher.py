"""Another model as the teacher: its target, its figures, and what is refused."""

from __future__ import annotations

import dataclasses
import logging
from functools import cache

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split, Whitespace
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from dictlearn.lm.language_model import LanguageModel, freeze
from dictlearn.objectives.other_teacher import OtherTeacher, refuse_other_tokens
from tests.formulas import kl_per_token

WORDS = 40
TOKENS = torch.randint(2, WORDS, (2, 7), generator=torch.Generator().manual_seed(1))
VALID = torch.rand(2, 7, generator=torch.Generator().manual_seed(2)) > 0.3


def tokenizer(words: int = WORDS, rule=None, bos: str = "w0") -> PreTrainedTokenizerFast:
    made = Tokenizer(WordLevel({f"w{i}": i for i in range(words)}, unk_token="w1"))
    made.pre_tokenizer = rule or Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=bos)


@cache
def model(seed: int = 0, vocab_size: int = 48, context: int = 16) -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=vocab_size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            max_position_embeddings=context,
            initializer_range=0.2,
        )
        return freeze(Qwen3ForCausalLM(config), tokenizer(), name=f"model {seed}")


def base_and_teacher() -> tuple[LanguageModel, LanguageModel]:
    return model(0, 48), model(1, 64)  # both padded, differently


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_the_target_is_the_mixture_over_the_tokens_there_are(weight, temperature):
    base, other = base_and_teacher()
    targets = OtherTeacher(base, other, weight, temperature).targets(TOKENS, VALID)
    patched = torch.randn(int(VALID.sum()), 48, requires_grad=True)
    first, rest = slice(0, 3), slice(3, None)
    value = torch.cat([targets.kl(rows, patched[rows]) for rows in (first, rest)])
    p, q, r = (
        (logits[:, :WORDS] / temperature).softmax(-1)
        for logits in (base.logits(TOKENS)[VALID], other.logits(TOKENS)[VALID], patched)
    )
    mixture = (1 - weight) * p + weight * q
    scale = temperature**2
    expected = scale * kl_per_token(mixture.log(), r.log())
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
    gradient, plain = (
        torch.autograd.grad(v.sum(), patched, retain_graph=True)[0] for v in (value, expected)
    )
    torch.testing.assert_close(gradient, plain, rtol=1e-3, atol=1e-5)
    assert torch.equal(gradient[:, WORDS:], torch.zeros(len(patched), 8))  # padded ids
    figures = targets.figures()
    for name, pair in {
        "base_patched": (p, r),
        "teacher_patched": (q, r),
        "teacher_base": (q, p),
    }.items():
        plain = scale * kl_per_token(pair[0].log(), pair[1].log()).mean().detach()
        assert figures[f"kl_{name}"] == pytest.approx(float(plain), rel=1e-4)
    difference = figures["kl_teacher_base"] - figures["kl_teacher_patched"]
    assert figures["kl_excess"] == pytest.approx(difference)


def test_a_dictionary_that_improves_on_its_model_is_warned_of_once(caplog):
    base, other = base_and_teacher()
    teacher = OtherTeacher(base, other, 1.0)

    def as_if_patched_gave(lm: LanguageModel) -> None:
        targets = teacher.targets(TOKENS, VALID)
        targets.kl(slice(None), lm.logits(TOKENS)[VALID][:, :48])
        targets.figures()

    with caplog.at_level(logging.WARNING):
        as_if_patched_gave(model(2, 48))
        assert not caplog.records
        for _ in range(40):
            as_if_patched_gave(other)
    assert len(caplog.records) == 1
    assert "the dictionary adds computation of its own" in caplog.text


OTHERS = {
    "has no tokenizer": None,
    "of 39 tokens is not that of model 0, of 40 \\('w39' is no token there and 39 here\\)": tokenizer(
        39
    ),
    "cuts text by other rules": tokenizer(rule=Split(" ", "removed")),
    "begins a document with token 2, model 0 with 0": tokenizer(bos="w2"),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_other_tokens_are_refused_with_the_reason(reason):
    other = dataclasses.replace(model(1), tokenizer=OTHERS[reason])
    with pytest.raises(
        ValueError, match=f"teacher.path=model 1: .*{reason}.*same|has no tokenizer"
    ):
        refuse_other_tokens(model(0), other)
    refuse_other_tokens(model(0), model(1))


def test_windows_longer_than_the_teacher_reads_are_refused():
    base, _ = base_and_teacher()
    with pytest.raises(ValueError, match="data.context=7: teacher model 3 reads at most 4 tokens"):
        OtherTeacher(base, model(3, 48, 4), 0.5).targets(TOKENS, VALID)
