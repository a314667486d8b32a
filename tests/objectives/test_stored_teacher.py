"""Targets on disk: what comes back is what was stored, and what doesn't match is refused."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from dictlearn.lm.language_model import LanguageModel, freeze
from dictlearn.objectives.kl_to_teacher import kl_per_token
from dictlearn.objectives.stored_teacher import StoredTeacher, store_targets

VOCAB, CONTEXT = 30, 6


@dataclass
class Text:
    context: int = CONTEXT
    seed: int = 0

    def __len__(self) -> int:
        return 7

    def window_batch(self, indices) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        whole = torch.randint(0, VOCAB, (len(self), self.context), generator=generator)
        return whole[torch.as_tensor(list(indices))]


@cache
def model() -> LanguageModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen3Config(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=4,
            max_position_embeddings=16,
            initializer_range=0.3,
        )
        return freeze(Qwen3ForCausalLM(config), name="tiny", revision="abc")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The whole vocabulary as the head: then targets are exact."""
    options = {"head": VOCAB, "samples": 1, "dtype": "float32", "shard_windows": 3}
    assert store_targets(
        model(), Text(), tmp_path / "t", batch_windows=2, chunk_tokens=5, **options
    )
    return tmp_path / "t"


def test_what_comes_back_belongs_to_the_windows_asked_for_in_any_order(folder):
    tokens_BP = Text().window_batch([6, 0, 3])
    valid_BP = torch.rand(3, CONTEXT) > 0.3
    patched = torch.randn(int(valid_BP.sum()), VOCAB)
    targets = StoredTeacher(model(), str(folder)).targets(tokens_BP, valid_BP)
    value = torch.cat(
        [targets.kl(slice(0, 4), patched[:4]), targets.kl(slice(4, None), patched[4:])]
    )
    exact = kl_per_token(model().logits(tokens_BP)[valid_BP], patched).detach()
    torch.testing.assert_close(value, exact, rtol=1e-4, atol=1e-5)
    assert set(targets.figures()) == {"kl_clipped"}
    assert len(list(folder.glob("targets-*.safetensors"))) == 3


def test_half_precision_and_a_temperature(tmp_path):
    store_targets(model(), Text(), tmp_path, head=VOCAB, samples=1, temperature=2.0)
    tokens_BP, patched = Text().window_batch([1]), torch.randn(CONTEXT, VOCAB)
    everything = torch.ones(1, CONTEXT, dtype=torch.bool)
    targets = StoredTeacher(model(), str(tmp_path)).targets(tokens_BP, everything)
    exact = 4 * kl_per_token(model().logits(tokens_BP)[0] / 2, patched / 2).detach()
    torch.testing.assert_close(targets.kl(slice(None), patched), exact, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"teacher": "other"}, "are of teacher tiny, this run wants other"),
        ({"revision": "def"}, "are of revision abc, this run wants def"),
        ({"temperature": 2.0}, "are of temperature 1.0, this run wants 2.0"),
        ({"clip": 1.0}, "teacher.clip=1.0"),
    ],
)
def test_targets_of_something_else_are_refused(folder, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        StoredTeacher(model(), str(folder), **options)


@pytest.mark.parametrize("name", ["tokenizer", "vocabulary", "tokens"])
def test_another_tokenizer_vocabulary_or_text_is_refused(folder, name):
    key = json.loads((folder / "targets.json").read_text())
    (folder / "targets.json").write_text(json.dumps({**key, name: 5}))
    with pytest.raises(ValueError, match=f"of {name} 5|hashes.safetensors is not what"):
        StoredTeacher(model(), str(folder))


def test_other_windows_are_refused(folder):
    other = Text(seed=1).window_batch([0])
    with pytest.raises(ValueError, match="has no targets for a window of this run's text"):
        StoredTeacher(model(), str(folder)).targets(other, torch.ones_like(other, dtype=torch.bool))


def test_mistakes_of_storing_are_one_sentence(folder, tmp_path):
    with pytest.raises(ValueError, match="holds something already"):
        store_targets(model(), Text(), folder, head=4)
    for options, sentence in (
        ({"head": 31}, "head=31: want 1 to the vocabulary's 30"),
        ({"samples": 0}, "samples=0"),
        ({"dtype": "int8"}, "dtype=int8: want float16 or float32"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ):
        with pytest.raises(ValueError, match=sentence):
            store_targets(model(), Text(), tmp_path / "new", **{"head": 4, **options})
    (folder / "targets.json").unlink()
    with pytest.raises(ValueError, match="has no finished targets"):
        StoredTeacher(model(), str(folder))


def test_the_vocabulary_of_the_run_counts(folder):
    smaller = replace(model(), info=replace(model().info, vocab_size=29))
    with pytest.raises(ValueError, match="of vocabulary 30, this run wants 29"):
        StoredTeacher(smaller, str(folder))
