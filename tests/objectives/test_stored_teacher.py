"""Targets on disk: what comes back is what was stored, and what doesn't match is refused."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from dictlearn.ckpt.commit import commit
from dictlearn.lm.language_model import LanguageModel, freeze
from dictlearn.objectives.stored_teacher import StoredTeacher
from dictlearn.store.targets import store_targets
from tests.formulas import kl_per_token

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

    def kept(self, indices) -> Tensor:
        return torch.ones_like(self.window_batch(indices), dtype=torch.bool)


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


def stored(folder: Path, **options: Any) -> Path:
    """As `dictlearn targets` does it."""

    def write(temporary: Path) -> None:
        store_targets(model(), Text(), temporary, batch_windows=2, chunk_tokens=5, **options)

    commit(folder, write, sort="stored targets")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The whole vocabulary as the head: then targets are exact."""
    options = {"head": VOCAB, "samples": 1, "dtype": "float32", "shard_windows": 3}
    return stored(tmp_path / "t", **options)


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
    stored(tmp_path / "t", head=VOCAB, samples=1, temperature=2.0)
    tokens_BP, patched = Text().window_batch([1]), torch.randn(CONTEXT, VOCAB)
    everything = torch.ones(1, CONTEXT, dtype=torch.bool)
    targets = StoredTeacher(model(), str(tmp_path / "t")).targets(tokens_BP, everything)
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


def rewritten(folder: Path, name: str, data: bytes) -> None:
    """Changes a file and makes the manifest fit, as somebody else could."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest["files"][name] = entry
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("value", [0, -1.0, float("inf")])
def test_a_temperature_that_none_has_is_the_files_fault(folder, value):
    key = json.loads((folder / "targets.json").read_text())
    rewritten(folder, "targets.json", json.dumps({**key, "temperature": value}).encode())
    with pytest.raises(ValueError, match=r"targets\.json has temperature=.* never wrote"):
        StoredTeacher(model(), str(folder))


@pytest.mark.parametrize(("name", "value"), [("tokenizer", "x"), ("vocabulary", 5), ("tokens", "")])
def test_another_tokenizer_vocabulary_or_text_is_refused(folder, name, value):
    key = json.loads((folder / "targets.json").read_text())
    rewritten(folder, "targets.json", json.dumps({**key, name: value}).encode())
    with pytest.raises(ValueError, match=f"of {name} {value}|hashes.safetensors is not what"):
        StoredTeacher(model(), str(folder))


ODD_KEYS = [b"[1]", b"{}", b"{", b"[" * 100_000, b'{"format": 1, "teacher": 5}', b"\xff"]


@pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
def test_a_key_that_we_never_wrote_is_one_sentence(folder, key):
    (folder / "targets.json").write_bytes(key)
    with pytest.raises(ValueError, match="targets.json has .* bytes where its manifest says"):
        StoredTeacher(model(), str(folder))
    rewritten(folder, "targets.json", key)
    with pytest.raises(ValueError, match="teacher.folder=.*targets.json .*makes them anew"):
        StoredTeacher(model(), str(folder))


def everything(folder: Path) -> list[Tensor]:
    teacher = StoredTeacher(model(), str(folder))
    tokens_BP = Text().window_batch(range(len(Text())))
    targets: Any = teacher.targets(tokens_BP, torch.ones_like(tokens_BP, dtype=torch.bool))
    return list(targets._targets)


def test_every_bit_counts(folder):
    right, rng = everything(folder), random.Random(0)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for cut in (True, False, False, False, False, False):
            place = rng.randrange(len(whole))
            flipped = whole[place] ^ 1 << rng.randrange(8)
            damaged = whole[:place] + (b"" if cut else bytes([flipped]) + whole[place + 1 :])
            path.write_bytes(damaged)
            try:
                assert all(map(torch.equal, everything(folder), right)), f"{path.name} at {place}"
                assert path.name == "manifest.json"  # the others have a hash
            except ValueError as error:
                assert str(error).startswith(f"teacher.folder={folder}: ")
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("head_log_p_NK", lambda t: t.fill_(torch.nan), "head_log_p_NK holds numbers that are not"),
        ("tail_mass_N", lambda t: t.fill_(torch.inf), "tail_mass_N holds numbers that are not"),
        (
            "head_ids_NK",
            lambda t: t.fill_(VOCAB),
            "head_ids_NK holds ids outside the vocabulary of 30",
        ),
        ("tail_ids_NM", lambda t: t.fill_(-1), "tail_ids_NM holds ids outside"),
        ("tail_ids_NM", lambda t: t.long(), "tail_ids_NM is torch.int64 of 2 dimensions"),
        ("tail_mass_N", lambda t: t[:-1], "has targets of {.*} tokens, not 3 windows"),
        ("tail_log_p_NM", lambda t: t[:, :0], "not as many ids as probabilities"),
    ],
)
def test_targets_that_no_teacher_gives_are_one_sentence(folder, name, change, sentence):
    shard = "targets-00000.safetensors"
    tensors = load_file(folder / shard)
    tensors[name] = change(tensors[name]).contiguous()
    rewritten(folder, shard, save(tensors))
    with pytest.raises(ValueError, match=f"teacher.folder={folder}: {shard} .*{sentence}"):
        everything(folder)


def test_a_teacher_that_is_not_finite_stores_nothing(tmp_path):
    broken = model.__wrapped__()  # not the one that others use
    broken.model.get_input_embeddings().weight[1] = torch.nan  # pyright: ignore

    def write(temporary: Path) -> None:
        store_targets(broken, Text(), temporary, head=4, samples=1)

    with pytest.raises(ValueError, match="model.path=tiny: gives logits that are not finite"):
        commit(tmp_path / "t", write, sort="stored targets")
    assert list(tmp_path.iterdir()) == []


def test_other_windows_are_refused(folder):
    other = Text(seed=1).window_batch([0])
    with pytest.raises(ValueError, match="has no targets for a window of this run's text"):
        StoredTeacher(model(), str(folder)).targets(other, torch.ones_like(other, dtype=torch.bool))


def test_mistakes_of_storing_are_one_sentence(folder, tmp_path):
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
