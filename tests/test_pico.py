"""pico: what ships is what the card says, and the script that makes it can be interrupted."""

from __future__ import annotations

import importlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3ForCausalLM

from dictlearn.lm.load import PICO_PATH
from dictlearn.sources.documents import is_held_out, stdlib_files

SCRIPTS = Path(__file__).parents[1] / "scripts"


@pytest.fixture(scope="module")
def model() -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM.from_pretrained(PICO_PATH, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(PICO_PATH)


@pytest.fixture(scope="module")
def card() -> dict[str, list[float]]:
    """The card's table rows: their first cell and the numbers in the others."""
    rows = re.findall(r"^\| (.+?) \|(.+)\|$", (PICO_PATH / "README.md").read_text(), re.MULTILINE)
    numbers = {name.strip(" *"): re.findall(r"\d+\.\d+", cells) for name, cells in rows}
    return {name: [float(number) for number in found] for name, found in numbers.items()}


def _losses(model: Qwen3ForCausalLM, tokens_BP: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        logits = model(tokens_BP[:, :-1]).logits
    return F.cross_entropy(logits.mT, tokens_BP[:, 1:], reduction="none")


def test_the_folder_is_small_and_holds_nothing_to_unpickle() -> None:
    names = {path.name for path in PICO_PATH.iterdir()}
    assert names == {
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(path.stat().st_size for path in PICO_PATH.iterdir()) < 8e6
    with safe_open(PICO_PATH / "model.safetensors", "pt") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118


def test_the_architecture_is_the_flagships(model: Qwen3ForCausalLM) -> None:
    config = model.config
    assert (config.model_type, config.num_hidden_layers) == ("qwen3", 4)
    assert (config.num_attention_heads, config.num_key_value_heads) == (4, 2)
    assert model.lm_head.weight is model.get_input_embeddings().weight
    assert config.max_position_embeddings == 512
    assert 2.5e6 < sum(p.numel() for p in model.parameters()) < 3.6e6


def test_the_tokenizer_is_lossless_and_leaves_bos_to_the_packing(
    tokenizer: PreTrainedTokenizerBase, model: Qwen3ForCausalLM
) -> None:
    texts = ["def f(x):\n\treturn x  # ünïcode, 漢字 \U0001f40d\r\n", "", "  ", "\x00\n\n\n    x"]
    for text in texts:
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        assert tokenizer.bos_token_id not in ids
    assert tokenizer.bos_token_id == model.config.bos_token_id == 1
    assert tokenizer.pad_token_id == model.config.pad_token_id == 0
    assert len(tokenizer) == model.config.vocab_size == 4096
    assert tokenizer.model_max_length == 512


def test_the_card_beats_its_baselines(card: dict[str, list[float]]) -> None:
    (pico,), (bigram,), (five_gram,) = card["pico"], card["bigram"], card["5-gram"]
    assert pico < bigram - 2
    assert pico < five_gram < bigram < card["unigram"][0]
    for span in ("128 tokens", "255 tokens"):
        first, second = card[span]
        assert second < first / 3
    by_position = card["nats per token"]
    assert by_position[-1] < by_position[0]  # the far end of the context is of use
    assert max(by_position[1:]) < bigram - 1


def test_the_file_scores_what_the_card_says(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase, card: dict[str, list[float]]
) -> None:
    """On a sample, and of whichever Python runs this: near is all that it can be."""
    root = Path(sysconfig.get_path("stdlib"))
    held_out = [p for p in stdlib_files() if is_held_out(p.relative_to(root).as_posix(), 0.1)]
    stream: list[int] = []
    for path in held_out[::8]:
        text = path.read_text(encoding="utf-8", errors="ignore")[:4000]
        stream += [1, *tokenizer(text, verbose=False)["input_ids"]]
    tokens_BP = torch.tensor(stream[: len(stream) // 512 * 512]).view(-1, 512)[:16]
    losses = _losses(model, tokens_BP)
    assert losses[tokens_BP[:, 1:] != 1].mean() == pytest.approx(card["pico"][0], abs=0.8)


def test_pico_copies_what_it_saw_once(
    model: Qwen3ForCausalLM, card: dict[str, list[float]]
) -> None:
    tokens = torch.randint(2, 4096, (8, 128))
    losses = _losses(model, torch.cat([torch.ones(8, 1, dtype=torch.int64), tokens, tokens], 1))
    first, second = card["128 tokens"]
    assert losses[:, :128].mean() == pytest.approx(first, abs=0.5)
    assert losses[:, 129:].mean() == pytest.approx(second, abs=0.5)


def test_pico_knows_python(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerBase) -> None:
    sensible = {
        "import os\nimport": " ",
        "def __init__(self": "),",
        "for i in range(": "0123456789lns",
    }
    for prompt, starts in sensible.items():
        with torch.no_grad():
            logits = model(torch.tensor([[1, *tokenizer(prompt)["input_ids"]]])).logits
        assert str(tokenizer.decode(logits[0, -1].argmax()))[0] in starts, prompt


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """scripts/train_pico.py, to train something far smaller."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    module = importlib.import_module("train_pico")
    small = module.pico_config()
    small.update({"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1})
    small.update({"head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1})
    small.vocab_size, small.layer_types = 300, ["full_attention"]
    monkeypatch.setattr(module, "pico_config", lambda: small)
    monkeypatch.setattr(module, "CONTEXT", 32)
    monkeypatch.setattr(module, "VOCABULARY", 300)
    yield module
    for name in ("train_pico", "pico_card", "pico_muon", "pico_ngrams"):
        sys.modules.pop(name, None)


def _corpus(script: ModuleType) -> tuple[Any, Any]:
    texts = [f"def function_{i}(x):\n    return x + {i * i}\n" * 5 for i in range(20)]
    tokenizer = script.train_tokenizer(texts, 300)
    train, starts = script._stream(tokenizer, texts[:16])
    return tokenizer, script.Corpus(train, starts, script._stream(tokenizer, texts[16:])[0])


def test_an_interrupted_training_goes_on_to_the_same_weights(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the clock says: how busy a machine is must not choose how numbers are computed."""
    clock = np.random.default_rng(0)
    monkeypatch.setattr(script.time, "perf_counter", clock.random)
    _, corpus = _corpus(script)
    recipe = script.Recipe(warmup_steps=2, repeated=0.5)
    whole = script.Trainer(recipe, corpus, tmp_path)
    losses = [whole.step(i / 6) for i in range(6)]

    script.Trainer(recipe, corpus, tmp_path / "elsewhere").restore()  # nothing there: starts anew
    first = script.Trainer(recipe, corpus, tmp_path)
    assert [first.step(i / 6) for i in range(3)] == losses[:3]
    first.save()
    second = script.Trainer(recipe, corpus, tmp_path)
    second.restore()
    assert [second.step(i / 6) for i in range(3, 6)] == losses[3:]
    for mine, theirs in zip(whole.parameters, second.parameters, strict=True):
        assert torch.equal(mine, theirs)


def test_training_windows_are_a_pure_function_and_only_copies_are_scored(
    script: ModuleType, tmp_path: Path
) -> None:
    _, corpus = _corpus(script)
    windows = script.TrainingWindows(corpus, script.Recipe(repeated=1.0))
    steps = {step: windows.step(step) for step in (7, 0, 7, 300)}
    again = script.TrainingWindows(corpus, script.Recipe(repeated=1.0)).step(7)
    assert all(torch.equal(a, b) for a, b in zip(steps[7], again, strict=True))
    inputs, labels = steps[0]
    for row, scored in zip(inputs.tolist(), labels.tolist(), strict=True):
        first = next(i for i, label in enumerate(scored) if label != -100)
        assert scored[first:] == row[first:]
        start = 1 if row[0] == 1 else 0
        span = next(n for n in range(1, 32) if row[start + n :] == row[start : 32 - n])
        assert first > span

    texts = script.TrainingWindows(corpus, script.Recipe(repeated=0.0, windows=1))
    read = torch.cat([texts.step(i)[0][0] for i in range(texts.per_epoch)])
    counts = torch.bincount(read, minlength=300) - torch.bincount(
        torch.from_numpy(corpus.train.astype(np.int64)), minlength=300
    )
    assert counts.abs().sum() < 32  # an epoch is every token once, bar those that fill no window


def test_shipping_writes_a_model_that_loads(script: ModuleType, tmp_path: Path) -> None:
    tokenizer, corpus = _corpus(script)
    trainer = script.Trainer(script.Recipe(), corpus, tmp_path)
    trainer.step(0.0)
    folder = tmp_path / "pico"
    figures = script.ship(trainer, tokenizer, corpus, folder, n_windows=None)
    loaded = Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for name, weight in loaded.named_parameters():
        theirs = dict(trainer.model.named_parameters())[name]
        assert torch.equal(weight, theirs.bfloat16().float()), name
    assert AutoTokenizer.from_pretrained(folder).bos_token_id == 1
    text = (folder / "README.md").read_text()
    assert f"| bigram | {figures['bigram']:.3f} |" in text
    assert f"**{figures['pico']:.3f}**" in text
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("shape", [(16, 16), (24, 8), (8, 24)], ids=str)
def test_muon_moves_every_direction_alike(script: ModuleType, shape: tuple[int, int]) -> None:
    u, s, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    gradient = u * torch.logspace(-1, 1, len(s)) @ v
    update = sys.modules["pico_muon"].orthogonalised(gradient)
    assert update.shape == shape
    assert (torch.linalg.svdvals(update) - 1).abs().max() < 0.4
    assert (update * gradient).sum() > 0.8 * torch.linalg.svdvals(gradient).sum()


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_baselines_are_probabilities(script: ModuleType, order: int) -> None:
    rng = np.random.default_rng(0)
    stream = (rng.random(4000) ** 3 * 12).astype(np.uint16)  # of 12 tokens, some never seen
    stream[stream == 11] = 0
    model = sys.modules["pico_ngrams"].KneserNey(stream, order, 12)
    contexts = np.stack([stream[i : i + 4] for i in range(50)] + [np.array([11, 11, 3, 1])])
    everything = np.concatenate([np.append(c, w)[None] for c in contexts for w in range(12)])
    last = np.exp(model.log_probabilities(everything)[:, -1]).reshape(-1, 12)
    np.testing.assert_allclose(last.sum(1), 1, rtol=1e-12)
    assert (last > 0).all()


def test_longer_contexts_help_the_baselines(script: ModuleType) -> None:
    stream = np.tile(np.array([1, 2, 3, 1, 2, 4, 5, 2, 6], dtype=np.uint16), 200)
    nats = [
        -sys.modules["pico_ngrams"].KneserNey(stream, n, 8).log_probabilities(stream[None]).mean()
        for n in (1, 2, 3, 5)
    ]
    assert nats == sorted(nats, reverse=True)
    assert nats[0] > 1.5 and nats[-1] < 0.05
