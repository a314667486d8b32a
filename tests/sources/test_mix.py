"""data=mix: each text has its share of the tokens, the order is fixed, and repetitions are said."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from dictlearn import config
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model
from dictlearn.sources.mix import MixedWindows, mix_windows
from dictlearn.sources.mixture import naming_part, texts_in, with_kinds
from dictlearn.sources.token_windows import TokenWindows
from dictlearn.sources.tokens import stdlib_windows, text_windows
from dictlearn.verbs import build


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_model("pico")


def part(first: int, n_windows: int, n_documents: int = 1) -> TokenWindows:
    """Windows of three tokens: first, first + 1, ..."""
    stream = first + torch.arange(3 * n_windows, dtype=torch.int32)
    starts = torch.arange(n_documents) * (3 * n_windows // n_documents)
    return TokenWindows(stream, 3, frozenset({0}), 0, starts)


def given(windows: TokenWindows, seen: list[Any] | None = None) -> Any:
    """What builds a part."""

    def build(**options: Any) -> TokenWindows:
        if seen is not None:
            seen.append(options)
        return windows

    return build


def test_windows_of_a_part_are_spread_and_repeated_evenly() -> None:
    mixed = MixedWindows([part(100, 4), part(200, 2, 2)], [2, 5])
    everything = range(len(mixed))
    assert mixed.window_batch(everything)[:, 0].tolist() == [100, 106, 200, 200, 200, 203, 203]
    assert mixed.window_batch([6, 0]).tolist() == [[203, 204, 205], [100, 101, 102]]
    assert mixed.documents([0, 2, 6])[:, 0].tolist() == [0, 1, 2]
    assert mixed.kept(everything).all() and mixed.kept(everything).shape == (7, 3)
    assert (len(mixed), mixed.n_documents, mixed.n_kept) == (7, 3, 21)
    for outside in ([7], [-1]):
        with pytest.raises(IndexError):
            mixed.window_batch(outside)


def test_weights_are_shares_of_kept_tokens(
    lm: LanguageModel, caplog: pytest.LogCaptureFixture
) -> None:
    """Of part b every window has one token that is kept: it needs three times as many windows."""
    chosen = torch.tensor([True, False, False] * 6)
    starts = torch.arange(6) * 3
    b = TokenWindows(torch.arange(50, 68).int(), 3, frozenset({0}), 0, starts, chosen, apart=True)
    parts = {"a": given(part(100, 10)), "b": given(b)}
    mixed = mix_windows(lm, "train", parts, {"a": 3}, context=3)
    share = mixed.kept(range(10)).sum(), mixed.kept(range(10, len(mixed))).sum()
    assert [int(n) for n in share] == [30, 10]
    assert caplog.messages == [
        "data.parts.b: its 6 tokens are repeated 1.7 times to be 25% of the mixture"
    ]
    held_out = mix_windows(lm, "eval", parts, {"a": 3}, context=3)
    assert [int(held_out.kept(r).sum()) for r in (range(6), range(6, 12))] == [18, 6]
    assert len(held_out) == 12, "nothing is repeated, and the shares are the same"


def test_parts_have_what_the_mixture_says(lm: LanguageModel) -> None:
    seen: list[Any] = []
    parts = {"a": given(part(100, 4), seen), "b": given(part(200, 4), seen)}
    mix_windows(lm, "eval", parts, {"b": 3}, context=3, held_out=0.2, max_tokens=1000)
    same = {"lm": lm, "split": "eval", "context": 3, "held_out": 0.2}
    assert seen == [{**same, "max_tokens": 250}, {**same, "max_tokens": 750}]
    seen.clear()
    mix_windows(lm, "eval", parts, context=3)
    assert "max_tokens" not in seen[0]


def test_mistakes_are_named(lm: LanguageModel) -> None:
    parts = {"a": given(part(100, 4)), "lib": partial(text_windows, paths="nowhere.txt")}
    for sentence, options in {
        r"^data\.parts=null: want two texts or more": {"parts": {}},
        r"^data\.weights\.c: no such part; there are a, lib$": {"weights": {"c": 1}},
        r"^data\.weights\.a=0: want a number above 0$": {"weights": {"a": 0}},
        r"^data\.parts\.lib\.paths=nowhere\.txt: no file matches": {},
        r"^data\.context=1: pico reads 2 to 512 tokens$": {"context": 1},
    }.items():
        with pytest.raises(ValueError, match=sentence):
            mix_windows(lm, "train", **({"parts": parts, "context": 3} | options))
    library = {"lib": stdlib_windows}
    with pytest.raises(ValueError, match=r"^data\.held_out=0: holds out no text"):
        mix_windows(lm, "eval", library, held_out=0, max_tokens=100)
    for key in ("data", "data.parts.a"):
        with pytest.raises(ValueError, match=rf"^{key}\.roles=x$"), naming_part(key):
            raise ValueError("data.roles=x")


def test_a_part_has_the_keys_of_its_kind(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.yaml").write_text("defaults: [text]\npaths: [notes.txt]\n")
    data = OmegaConf.create(
        {
            "parts": {
                "mine": {"data": "notes", "split_on": "x"},
                "both": {"data": "mix", "parts": {"in": {"data": "stdlib"}}},
            },
            "context": 8,
        }
    )
    folders = [config.conf_dir(), tmp_path]
    found = with_kinds(data, folders)
    mine = found.parts.mine
    assert mine._target_ == "dictlearn.sources.tokens.text_windows" and mine.field == "text"
    assert (mine.paths, mine.split_on) == (["notes.txt"], "x")
    assert "context" not in mine and "data" not in mine and found.context == 8
    inner = found.parts.both.parts["in"]
    assert inner._target_ == "dictlearn.sources.tokens.stdlib_windows"
    assert [key for key, _ in texts_in(found)] == ["data.parts.mine", "data.parts.both.parts.in"]
    assert with_kinds(found, folders) == found
    for part, sentence in {
        "x": r"^data\.parts\.a=x: want a kind of data and its keys",
        "{data: texts}": r"^data\.parts\.a\.data=texts: want one of chat, hub, mix, notes, stdlib, text",
        "{paths: x}": r"^data\.parts\.a\.data=None: want one of",
        "{data: text, path: x}": r"^data\.parts\.a\.path: data=text has no such key for a part; it has p",
        "{data: text, context: 3}": r"^data\.parts\.a\.context: all parts share it; want data\.context",
        "{data: text, _target_: os.system}": r"^data\.parts\.a\._target_: ",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            with_kinds(cast("DictConfig", OmegaConf.create(f"parts: {{a: {part}}}")), folders)


def test_the_command_line_names_parts(tmp_path: Path, lm: LanguageModel) -> None:
    paths = []
    for name in ("a", "odd ${x}"):
        paths.append(tmp_path / f"{name}.txt")
        paths[-1].write_text("".join(f"{name} {i}\n\n" for i in range(60)))
    parts = {
        name: {"data": "text", "paths": str(path).replace("${", r"\${"), "split_on": "\n\n"}
        for name, path in zip("ab", paths, strict=True)
    }
    given = ",".join(
        f"{n}: {{data: text, paths: '{p['paths']}', split_on: '\\n\\n'}}" for n, p in parts.items()
    )
    cfg = config.compose("train", ["data=mix", f"data.parts={{{given}}}", "data.context=16"])
    train, held_out = (build.build_windows(cfg, lm, split) for split in ("train", "eval"))
    assert lm.tokenizer is not None
    texts = [
        str(lm.tokenizer.decode(windows.window_batch(range(len(windows))).flatten()))
        for windows in (train, held_out)
    ]
    assert all("a 1" in text and "odd ${x} " in text for text in texts)
    with pytest.raises(ValueError, match=r"^data\.parts\.a\.long=chop: want split or cut"):
        config.compose("train", ["data=mix", "data.parts={a: {data: text, long: chop}}"])
