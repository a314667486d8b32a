"""Windows of tokens: nothing lost, boundaries kept, splits apart, specials unseen, starts quick."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel, document_start
from dictlearn.lm.load import freeze
from dictlearn.sources import token_cache, tokens
from dictlearn.sources.documents import Document, is_held_out
from dictlearn.sources.reader import Reader
from dictlearn.sources.tokens import (
    WHOLE,
    Corpus,
    TokenWindows,
    hub_windows,
    stdlib_windows,
    text_windows,
)

PAD, BOS, EOS = 0, 1, 2
SPECIALS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}


def _tokenizer(**specials: str) -> PreTrainedTokenizerFast:
    """One token per byte; every special is in the vocabulary whether or not it has a role."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS.values(), *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.enable_truncation(4)  # some tokenizers on the hub come like this
    if "pad_token" in specials:
        backend.enable_padding(length=9)
    return PreTrainedTokenizerFast(tokenizer_object=backend, **specials)


def _lm(tokenizer: PreTrainedTokenizerFast | ByT5Tokenizer | None) -> LanguageModel:
    config = Qwen3Config(
        vocab_size=400,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    return freeze(Qwen3ForCausalLM(config), tokenizer, name="tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "dictlearn" / "tokens"


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return _lm(_tokenizer(**SPECIALS))


TEXTS = [f"document {i}, " * (1 + i % 7) for i in range(60)]


@pytest.fixture
def jsonl(tmp_path: Path) -> str:
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return str(path)


def _all(windows: TokenWindows) -> torch.Tensor:
    return windows.window_batch(range(len(windows)))


def _kept(windows: TokenWindows) -> list[int]:
    return _all(windows)[windows.kept(range(len(windows)))].tolist()


def _texts(lm: LanguageModel, windows: TokenWindows) -> list[str]:
    """The documents, read back from the windows by their boundaries."""
    assert lm.tokenizer is not None
    stream = _all(windows).flatten()
    stream = stream[stream != PAD]
    starts = (stream == BOS).nonzero().flatten().tolist()
    assert starts[0] == 0
    return [
        str(lm.tokenizer.decode(stream[start + 1 : stop].tolist()))
        for start, stop in zip(starts, [*starts[1:], len(stream)], strict=True)
    ]


@given(st.integers(1, 40), st.integers(2, 9), st.booleans())
def test_no_token_is_lost_and_only_the_last_window_is_padded(n: int, context: int, padded: bool):
    stream = torch.arange(3, 3 + n, dtype=torch.int32)
    windows = TokenWindows(stream, context, frozenset({PAD, BOS}), PAD if padded else None)
    assert len(windows) == (-(-n // context) if padded else n // context)
    assert _kept(windows) == stream[: len(windows) * context].tolist()
    assert (_all(windows).flatten()[n:] == PAD).all()


def test_window_batch_takes_any_order_and_refuses_what_is_not_there() -> None:
    windows = TokenWindows(torch.arange(1, 12, dtype=torch.int32), 4, frozenset({0}), 0)
    batch = windows.window_batch(torch.tensor([2, 0, 2]))
    assert batch.dtype == torch.int64
    assert batch.tolist() == [[9, 10, 11, 0], [1, 2, 3, 4], [9, 10, 11, 0]]
    assert windows.window_batch([1]).tolist() == [[5, 6, 7, 8]]
    assert windows.window_batch([]).shape == (0, 4)
    for outside in ([3], [-1]):
        with pytest.raises(IndexError):
            windows.window_batch(outside)


def test_ids_above_all_specials_are_valid_ones() -> None:
    stream = torch.tensor([0, 4, 5, 6, 7, 4000], dtype=torch.int32)
    seen = TokenWindows(stream, 3, frozenset({0, 5}), 0).kept([0, 1])
    assert seen.tolist() == [[False, True, False], [True, True, True]]
    assert TokenWindows(stream, 3, frozenset(), None).kept([1, 0]).all()


def test_documents_come_back_whole_each_on_its_side(lm: LanguageModel, jsonl: str) -> None:
    sides = {
        split: _texts(lm, text_windows(lm, split, jsonl, context=16, held_out=0.3))
        for split in ("train", "eval")
    }
    assert sides["eval"] == [text for text in dict.fromkeys(TEXTS) if is_held_out(text, 0.3)]
    assert sides["train"] == [text for text in dict.fromkeys(TEXTS) if not is_held_out(text, 0.3)]
    assert sides["train"] and sides["eval"]


def test_every_token_knows_its_document(lm: LanguageModel, jsonl: str) -> None:
    windows = text_windows(lm, "eval", jsonl, context=16, held_out=0.3)
    for _ in range(2):  # the second time from the disk
        indices = [len(windows) - 1, *range(len(windows) - 1)]
        documents = windows.documents(indices)
        places = torch.tensor(indices).argsort()
        starts = windows.window_batch(indices) == BOS
        expected = starts[places].flatten().cumsum(0) - 1
        assert torch.equal(documents[places].flatten(), expected)
        assert int(documents.max()) + 1 == len(_texts(lm, windows))
        windows = text_windows(lm, "eval", jsonl, context=16, held_out=0.3)


def test_no_text_is_in_both_splits_even_under_two_keys(lm: LanguageModel) -> None:
    """Two files of the library with one content can fall on two sides: only the first counts."""
    keys = [f"module_{i}.py" for i in range(40)]
    documents = [Document(key, f"text {i // 2}") for i, key in enumerate(keys)]
    assert {is_held_out(key, 0.5) for key in keys[:2]} == {True, False} or any(
        is_held_out(a, 0.5) != is_held_out(b, 0.5)
        for a, b in zip(keys[::2], keys[1::2], strict=True)
    )
    twins = Corpus("data=twins", "twins", lambda: [], lambda _: documents)
    settings = 16, 0.5, None, "split", twins
    found = {s: _texts(lm, tokens.windows(lm, s, *settings)) for s in ("train", "eval")}
    assert not set(found["train"]) & set(found["eval"])
    assert sorted(found["train"] + found["eval"]) == sorted({d.text for d in documents})


def test_a_special_tokens_name_in_a_text_is_only_text(lm: LanguageModel, tmp_path: Path) -> None:
    """Otherwise any page that quotes <bos> would look like two documents."""
    text = "a<bos>b<pad>c"
    (tmp_path / "quoted.txt").write_text(text)
    windows = text_windows(lm, "train", str(tmp_path / "quoted.txt"), context=64, held_out=0)
    assert len(windows) == 1 and len(_kept(windows)) == len(text)
    assert _texts(lm, windows) == [text]


def test_the_tokenizer_is_left_as_it_was(lm: LanguageModel, jsonl: str) -> None:
    assert isinstance(lm.tokenizer, PreTrainedTokenizerFast)
    before = lm.tokenizer.backend_tokenizer.to_str()
    windows = text_windows(lm, "train", jsonl, context=16)
    assert len(_all(windows).flatten()) > 1000  # and its truncation to 4 tokens was not heard
    assert lm.tokenizer.backend_tokenizer.to_str() == before


def test_what_stands_between_documents(tmp_path: Path) -> None:
    for i, text in enumerate(["aa", "bbb"]):
        (tmp_path / f"{i}.txt").write_text(text)
    cases = {
        (PAD, BOS, EOS): BOS,
        (PAD, None, EOS): PAD,  # Qwen: no BOS, and the pad is what its training put there
        (None, None, EOS): EOS,
        (None, None, None): None,
    }
    names = ("pad_token", "bos_token", "eos_token")
    for ids, start in cases.items():
        roles = {n: SPECIALS[n] for n, i in zip(names, ids, strict=True) if i is not None}
        lm = _lm(_tokenizer(**roles))
        assert document_start(lm) == start
        windows = text_windows(lm, "train", str(tmp_path / "*.txt"), context=5, held_out=0)
        assert len(_kept(windows)) == 5
        found = windows.documents(range(len(windows))).flatten().tolist()
        if start is None:
            assert len(windows) == 1 and found == [0, 0, 1, 1, 1]
        else:
            assert (_all(windows) == start).sum() >= 2
            assert found == [0, 0, 0, 1, 1] + [1] * 5  # pads are the last one's


def test_a_tokenizer_in_python_gives_the_same_windows(jsonl: str) -> None:
    lm = _lm(ByT5Tokenizer())
    windows = text_windows(lm, "train", jsonl, context=16, held_out=0)
    ids = [byte + 3 for text in dict.fromkeys(TEXTS) for byte in text.encode()]
    assert _kept(windows) == ids


def test_the_second_start_reads_no_text(
    lm: LanguageModel, jsonl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _all(text_windows(lm, "train", jsonl, context=16))
    held_out = _all(text_windows(lm, "eval", jsonl, context=32))

    def unwanted(*_: object) -> None:
        raise AssertionError("the text was read again")

    monkeypatch.setattr(tokens, "text_documents", unwanted)
    assert torch.equal(_all(text_windows(lm, "train", jsonl, context=16)), first)
    assert torch.equal(_all(text_windows(lm, "eval", jsonl, context=32)), held_out)


Change = Callable[[str], dict[str, object]]
CHANGES: dict[str, Change] = {
    "file": lambda path: {"paths": _append(path)},
    "field": lambda path: {"field": "other"},
    "held_out": lambda path: {"held_out": 0.5},
    "max_tokens": lambda path: {"max_tokens": 200},
}


def _append(path: str) -> str:
    with Path(path).open("a") as file:
        file.write(json.dumps({"text": "one document more"}) + "\n")
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_the_tokens_makes_them_anew(
    lm: LanguageModel, tmp_path: Path, change: str
) -> None:
    path = tmp_path / "two.jsonl"
    rows = [{"text": text, "other": text.upper()} for text in TEXTS]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = _all(text_windows(lm, "train", str(path), context=16, held_out=0.1))
    options: dict[str, object] = {"paths": str(path), "held_out": 0.1}
    options |= CHANGES[change](str(path))
    after = _all(text_windows(lm, "train", context=16, **options))  # type: ignore[arg-type]
    assert not torch.equal(before, after)


def test_another_tokenizer_makes_them_anew(lm: LanguageModel, jsonl: str) -> None:
    ours = _all(text_windows(lm, "train", jsonl, context=16))
    assert not torch.equal(
        _all(text_windows(_lm(ByT5Tokenizer()), "train", jsonl, context=16)), ours
    )


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "other"])
def test_a_damaged_cache_is_made_anew(
    lm: LanguageModel, jsonl: str, cache: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = _all(text_windows(lm, "train", jsonl, context=16))
    (path,) = cache.iterdir()
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    changed = {"flipped": content, "cut": content[:-9], "empty": b"", "other": b"not safetensors"}
    path.unlink()
    path.write_bytes(bytes(changed[damage]))
    with caplog.at_level(logging.WARNING):
        assert torch.equal(_all(text_windows(lm, "train", jsonl, context=16)), before)
    assert f"{path} is damaged" in caplog.text
    caplog.clear()
    text_windows(lm, "train", jsonl, context=16)
    assert not caplog.text


def test_without_a_place_to_keep_tokens_the_run_goes_on(
    lm: LanguageModel, jsonl: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    for split in ("train", "eval"):
        assert len(text_windows(lm, split, jsonl, context=16))
    assert caplog.text.count("not kept for the next start") == 1  # what keeps one keeps all


def test_a_cache_that_cannot_be_written_leaves_nothing_half_written(
    lm: LanguageModel, jsonl: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache, "save_file", full)
    assert len(text_windows(lm, "train", jsonl, context=16))
    assert not cache.exists()


def test_max_tokens_bounds_train(lm: LanguageModel, jsonl: str) -> None:
    windows = text_windows(lm, "train", jsonl, context=16, max_tokens=160)
    assert len(windows) == 10
    assert (_all(windows) != PAD).all()


def test_the_standard_library_is_held_out_by_path(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = [Document("argparse.py", "train on this"), Document("enum.py", "not on this")]
    monkeypatch.setattr(tokens, "stdlib_documents", lambda _: documents)
    assert _texts(lm, stdlib_windows(lm, "train", context=16)) == ["train on this"]
    assert _texts(lm, stdlib_windows(lm, "eval", context=16)) == ["not on this"]


def test_a_data_set_in_the_hubs_layout_becomes_windows(lm: LanguageModel, tmp_path: Path) -> None:
    folder = tmp_path / "dataset"
    folder.mkdir()
    pq.write_table(pa.table({"text": TEXTS}), folder / "train-00000-of-00001.parquet")
    found = [
        text
        for split in ("train", "eval")
        for text in _texts(lm, hub_windows(lm, split, str(folder), context=16))
    ]
    assert sorted(found) == sorted(set(TEXTS))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "test"}, "split=test: want train, eval or whole"),
        ({"context": 65}, "data.context=65: tiny reads 2 to 64 tokens; set data.context=64"),
        ({"context": 1}, "data.context=1: tiny reads 2 to 64 tokens"),
        ({"held_out": 1.0}, "data.held_out=1.0: want a fraction from 0 to below 1"),
        ({"max_tokens": 0}, "data.max_tokens=0: want 1 or more, or null for all"),
    ],
    ids=str,
)
def test_mistakes_are_named(
    lm: LanguageModel, jsonl: str, options: dict[str, object], sentence: str
) -> None:
    arguments = {"split": "train", "paths": jsonl, "context": 16} | options
    with pytest.raises(ValueError) as error:
        text_windows(lm, **arguments)  # type: ignore[arg-type]
    assert str(error.value) == sentence


def test_nothing_to_read_is_named(lm: LanguageModel) -> None:
    with pytest.raises(ValueError, match=r"data\.paths=\[\]: want files or globs"):
        text_windows(lm, "train", [], context=16)
    with pytest.raises(ValueError, match=r"data\.path=null: want a data set's hub id"):
        hub_windows(lm, "train", None, context=16)


def test_no_context_means_all_that_the_model_reads(lm: LanguageModel, jsonl: str) -> None:
    assert text_windows(lm, "train", jsonl, context=None).context == 64


def test_empty_data_is_an_error_before_anything_trains(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    message = r"^data\.paths=\[.*\]: there is no text to read, as no document has any"
    with pytest.raises(ValueError, match=message):
        text_windows(lm, "train", str(tmp_path / "blank.jsonl"), context=16)
    few = [text for text in map(str, range(99)) if not is_held_out(text, 0.1)][:2]
    (tmp_path / "few.txt").write_text(" ".join(few))
    path, options = str(tmp_path / "few.txt"), {"context": 16, "split_on": " "}
    with pytest.raises(ValueError, match=r"=0\.1: no document is left for eval, of 2 in all; want"):
        text_windows(lm, "train", path, **options)  # type: ignore[arg-type]
    assert len(text_windows(lm, "train", path, **options, held_out=0)) == 1  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data\.held_out=0: holds out no text"):
        text_windows(lm, "eval", path, **options, held_out=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("held_out", [0.1, 0.3, 0.95])
def test_a_single_document_is_cut_by_windows(
    lm: LanguageModel, tmp_path: Path, held_out: float, caplog: pytest.LogCaptureFixture
) -> None:
    """Whichever side its hash is on: its last windows are held out, and no token is on two sides."""
    path = tmp_path / "one.txt"
    path.write_text("".join(f"line {i}\n" for i in range(20)))
    train, held = (
        text_windows(lm, split, str(path), context=16, held_out=held_out)
        for split in ("train", "eval")
    )
    n = len(train) + len(held)
    assert len(held) == min(max(1, round(held_out * n)), n - 1)
    both = torch.cat([_all(train), _all(held)]).flatten()
    assert str(lm.tokenizer.decode(both[both > EOS].tolist())) == path.read_text()  # type: ignore
    (said,) = [line for line in caplog.messages if "one document" in line]
    one = f"the last of its {n} windows is held out"
    assert (one if len(held) == 1 else f"the last {len(held)} of its {n} windows are") in said


def test_a_single_document_of_a_single_window_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("short")
    with pytest.raises(ValueError, match="6 tokens, is one window of data.context=16; want more"):
        text_windows(lm, "train", str(tmp_path / "one.txt"), context=16)


def test_the_whole_text_is_all_of_its_documents(lm: LanguageModel, jsonl: str) -> None:
    windows = text_windows(lm, WHOLE, jsonl, context=16, held_out=0.5)
    assert _texts(lm, windows) == list(dict.fromkeys(TEXTS))


def test_text_shorter_than_a_window_is_named_before_training(tmp_path: Path) -> None:
    """A model without any special token has nothing to fill a window up with."""
    lm = _lm(_tokenizer())
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps({"text": f"tiny {i}"}) + "\n" for i in range(300)))
    with pytest.raises(ValueError) as error:
        text_windows(lm, "train", str(path), context=64, held_out=0.01)
    assert re.fullmatch(
        r"data\.held_out=0\.01: the held-out text is \d+ tokens, less than a window of data\.context="
        r"64, and tiny has no special token for padding; want more text or a smaller "
        r"data\.context",
        str(error.value),
    )
    with pytest.raises(ValueError, match=r"^data: the text is \d+ tokens, less than a window"):
        text_windows(lm, WHOLE, str(path), split_on="x", max_tokens=30, context=64)


def test_what_was_left_out_is_said_once_also_of_tokens_on_disk(
    lm: LanguageModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [*TEXTS, TEXTS[0], None, "half \ud83d"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    assert len(set(TEXTS)) == len(TEXTS)
    for _ in range(2):
        text_windows(lm, "train", str(path), context=16)
        text_windows(lm, "eval", str(path), context=16)
        assert [line for line in caplog.messages if line.startswith("data:")] == [
            "data: left out 1 repeated document, 1 row without text in data.field",
            "data: half a character (a lone surrogate) became U+FFFD in 1 document",
        ]
        caplog.clear()
        tokens._logged.clear()  # as in a new process, which finds the tokens on disk


def test_what_fills_up_the_last_window_changes_nothing_that_an_encoder_makes(jsonl: str) -> None:
    """It attends to the whole window: its few real tokens are what they are in a window of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=400,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=64,
            initializer_range=0.3,
        )
        model = BertModel(config)
    encoder = freeze(model, _tokenizer(pad_token="<pad>", cls_token="<bos>"), name="tiny")
    windows = text_windows(encoder, "eval", jsonl, context=64, held_out=0.3)
    last = torch.tensor([len(windows) - 1])
    tokens_P = windows.window_batch(last)[0]
    n = int((tokens_P != PAD).sum())
    assert 1 < n < 60
    read = Reader(encoder, windows, ["resid_post.1"], "error").read(0, last)
    alone = capture(encoder, tokens_P[None, :n], ["resid_post.1"])["resid_post.1"][0]
    kept = windows.kept(last)[0, :n]
    torch.testing.assert_close(read.values["resid_post.1"][read.keep_N], alone[kept])


def test_a_model_that_states_no_length_wants_a_context(lm: LanguageModel, jsonl: str) -> None:
    without = replace(lm, info=replace(lm.info, context_length=0))
    assert text_windows(without, "train", jsonl, context=100).context == 100
    with pytest.raises(ValueError, match=r"^data\.context=null: tiny does not say how many tokens"):
        text_windows(without, "train", jsonl, context=None)
    with pytest.raises(ValueError, match=r"^data\.context=1: want 2 tokens or more"):
        text_windows(without, "train", jsonl, context=1)


def test_a_model_without_a_tokenizer_reads_no_text(jsonl: str) -> None:
    with pytest.raises(ValueError, match=r"model\.path=tiny: has no tokenizer"):
        text_windows(_lm(None), "train", jsonl, context=16)
