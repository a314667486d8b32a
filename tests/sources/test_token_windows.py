"""Windows of documents that stand apart, tokens that are chosen, and documents that are cut."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dictlearn.lm.load import load_model
from dictlearn.sources.token_windows import TokenWindows
from dictlearn.sources.tokens import text_windows

PAD, BOS = 0, 1


def _windows(lengths: list[int], context: int, chosen: torch.Tensor | None = None) -> TokenWindows:
    """Documents of the tokens 100, 101, ... / 200, 201, ... / ..."""
    stream = torch.cat([100 * (d + 1) + torch.arange(n) for d, n in enumerate(lengths)]).int()
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1]
    return TokenWindows(stream, context, frozenset({PAD, BOS}), PAD, starts, chosen, apart=True)


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.integers(2, 7))
def test_apart_no_window_holds_two_documents_and_no_token_is_lost(lengths: list[int], context: int):
    windows = _windows(lengths, context)
    everything = range(len(windows))
    tokens, kept = windows.window_batch(everything), windows.kept(everything)
    assert len(windows) == sum(-(-n // context) for n in lengths)
    assert tokens[kept].tolist() == [
        100 * (d + 1) + i for d, n in enumerate(lengths) for i in range(n)
    ]
    assert (tokens[~kept] == PAD).all()
    document = windows.documents(everything)
    assert (document == document[:, :1]).all()
    assert torch.equal(tokens[kept] // 100 - 1, document[kept])
    assert (windows.n_kept, windows.n_read) == (sum(lengths), sum(lengths))
    assert windows.n_documents == len(lengths)


def test_a_window_without_a_chosen_token_is_left_out() -> None:
    chosen = torch.zeros(12, dtype=torch.bool)
    chosen[[1, 8, 9]] = True  # of the documents 100 to 106 and 200 to 204
    windows = _windows([7, 5], 3, chosen)
    assert windows.window_batch([0, 1]).tolist() == [[100, 101, 102], [200, 201, 202]]
    assert windows.kept([1, 0]).tolist() == [[False, True, True], [False, True, False]]
    assert windows.documents([0, 1]).tolist() == [[0] * 3, [1] * 3]
    assert (windows.n_kept, windows.n_read) == (3, 6)


def test_a_special_token_is_not_kept_though_it_is_chosen() -> None:
    stream = torch.tensor([BOS, 5, PAD, 6, 7, PAD], dtype=torch.int32)
    starts, chosen = torch.tensor([0, 4]), torch.ones(6, dtype=torch.bool)
    special, some = (frozenset({PAD, BOS}), frozenset({BOS}))
    windows = TokenWindows(stream, 4, special, PAD, starts, chosen, apart=True)
    assert windows.kept([0, 1]).tolist() == [[False, True, False, True], [True] + [False] * 3]
    windows = TokenWindows(stream, 4, some, PAD, starts, chosen, apart=True)
    # The last token is the pad's id and stands where padding begins: attention is masked there.
    assert windows.kept([0, 1]).tolist() == [[False, True, True, True], [True] + [False] * 3]


def test_documents_are_cut_where_that_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lm, paths = load_model("pico"), []
    for name, text in {"long": "word " * 100, "short": "a b"}.items():
        (tmp_path / f"{name}.txt").write_text(text)
        paths.append(str(tmp_path / f"{name}.txt"))
    whole = text_windows(lm, "train", paths, context=8, held_out=0)
    assert not caplog.messages
    with caplog.at_level(logging.WARNING):
        cut = text_windows(lm, "train", paths, long="cut", context=8, held_out=0)
    beyond = whole.n_read - cut.n_read
    assert caplog.messages == [
        f"data: left out {beyond} tokens beyond the data.context of their documents (data.long=cut)"
    ]
    assert torch.equal(cut.window_batch([0]), whole.window_batch([0]))
    assert cut.documents([1])[0, 0] == 1, "the second document comes after 8 tokens of the first"
    with pytest.raises(ValueError, match=r"^data\.long=chop: want split or cut"):
        text_windows(lm, "train", paths, long="chop")  # type: ignore[arg-type]
