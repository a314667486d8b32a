"""data=chat: every shape that conversations come in, windows of their own, and masks by role."""

from __future__ import annotations

import json
import logging
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dictlearn.dicts.sae import sae
from dictlearn.evals.downstream import Downstream
from dictlearn.evals.evaluation import evaluate_dictionary
from dictlearn.evals.sparsity import Sparsity
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model
from dictlearn.sources.chat import chat_windows
from dictlearn.sources.conversations import ChatColumn, from_text
from dictlearn.sources.hub_text import hub_documents
from dictlearn.sources.left_out import MESSAGES, PARTS, LeftOut
from dictlearn.sources.live import LiveSource
from dictlearn.sources.text_files import text_documents
from dictlearn.sources.token_windows import TokenWindows
from dictlearn.sources.windows import ShorterWindows, WindowsSource
from dictlearn.sparsity.topk import TopK

# Pico was not trained on chats; any template does to see which tokens are kept.
TEMPLATE = (
    "{{ bos_token }}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>\n{% endfor %}"
)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_model("pico")


def talk(*contents: str) -> list[dict[str, Any]]:
    """User and assistant in turn."""
    roles = ["user", "assistant"] * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


def column(**options: Any) -> ChatColumn:
    named = {"messages": "messages", "prompt": None, "response": None, "tools": "tools"} | options
    return ChatColumn(**named, left_out=options.get("left_out") or LeftOut())


def read(rows: list[dict[str, Any]], folder: Path, kind: str, column: ChatColumn) -> list[Any]:
    if kind == "jsonl":
        (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = text_documents(str(folder / "a.jsonl"), column, None, column.left_out)
    else:
        pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
        if kind == "parquet":
            found = text_documents(str(folder / "a.parquet"), column, None, column.left_out)
        else:
            found = hub_documents(str(folder), field=column, left_out=column.left_out)
    return [from_text(document.text) for document in found]


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "hub"])
def test_messages_come_in_one_form(tmp_path: Path, kind: str) -> None:
    rows = [
        {"id": 1, "messages": talk("a", "b")},
        {"id": 2, "messages": [{"role": "system", "content": "s", "name": "n"}, *talk("c", "d")]},
        {"id": 3, "messages": None},
        {"id": 4, "messages": []},
        {"id": 5, "messages": [{"role": None, "content": "x"}]},
    ]
    own = column()
    found = read(rows, tmp_path, kind, own)
    assert [c.messages for c in found] == [rows[0]["messages"], rows[1]["messages"]]
    assert [c.tools for c in found] == [None, None]
    assert own.left_out == {MESSAGES: 3}


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_prompt_and_a_response_are_two_turns(tmp_path: Path, kind: str) -> None:
    rows = [{"q": {"text": "a"}, "r": "b"}, {"q": {"text": "c"}, "r": None}]
    own = column(messages=None, prompt="q.text", response="r")
    assert [c.messages for c in read(rows, tmp_path, kind, own)] == [talk("a", "b")]
    assert own.left_out == {MESSAGES: 1}


def test_other_names_and_parts_and_tools(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1, "y": None}}}
    rows = [
        {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
        {"messages": json.dumps(talk("c", "d")), "tools": json.dumps([{"name": "f"}])},
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "e"}, {"type": "image"}, "f"],
                },
                {"role": "assistant", "content": None, "tool_calls": [call], "weight": None},
            ],
            "tools": [{"name": "f", "default": None}],
        },
        {"messages": talk("[not a list", "b"), "tools": "none"},
    ]
    own = column()
    found = read(rows, tmp_path, "jsonl", own)
    assert [c.messages for c in found[:2]] == [talk("a", "b"), talk("c", "d")]
    call["function"]["arguments"].pop("y")  # type: ignore[union-attr]
    assert found[2].messages == [
        {"role": "user", "content": "ef"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
    ]
    assert [c.tools for c in found] == [None, [{"name": "f"}], [{"name": "f"}], None]
    assert own.left_out == {PARTS: 1}


def test_a_first_row_without_messages_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"talk": "text", "n": 1}\n')
    for field, said in {
        "messages": "has no such field, but talk, n",
        "talk": "holds str; want a field of messages, a list with a role and a content each",
    }.items():
        with pytest.raises(ValueError, match=rf"^data\.field={field}: .* {said}$"):
            list(text_documents(str(path), column(messages=field)))
    with pytest.raises(ValueError, match=r"^data\.response=r: .* no such field, but talk, n$"):
        list(text_documents(str(path), column(messages=None, prompt="talk", response="r")))


@pytest.fixture
def chats(tmp_path: Path) -> str:
    rows = [
        {"messages": talk(f"question {i}?", " ".join([f"answer {i}"] * (i % 5 + 1)))}
        for i in range(30)
    ]
    rows += [{"messages": talk("anybody?")}, rows[3]]
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(lm: LanguageModel, windows: TokenWindows) -> list[tuple[str, str]]:
    """The whole of each window and what is kept of it."""
    assert lm.tokenizer is not None
    tokens, kept = (f(range(len(windows))) for f in (windows.window_batch, windows.kept))
    decode = lm.tokenizer.decode
    return [(str(decode(t)), str(decode(t[k]))) for t, k in zip(tokens, kept, strict=True)]


def test_a_conversation_has_its_own_window_and_only_the_assistant_is_kept(
    lm: LanguageModel, chats: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        windows = chat_windows(lm, "whole", chats, template=TEMPLATE, context=64)
    found = texts(lm, windows)
    assert len(found) == 30
    for i, (whole, kept) in enumerate(found):
        answer = " ".join([f"answer {i}"] * (i % 5 + 1))
        assert whole.startswith(f"<|bos|><user>question {i}?</user>\n<assistant>")
        assert kept == answer
    warned = "\n".join(caplog.messages)
    assert (
        "data: left out 1 repeated document, 1 conversation without a turn of data.roles" in warned
    )
    assert "data: whole: 30 windows of single conversations" in warned

    keep = chat_windows(lm, "whole", chats, template=TEMPLATE, context=64, template_tokens="keep")
    assert texts(lm, keep)[1][1] == "<assistant>answer 1 answer 1</assistant>\n"
    users = chat_windows(lm, "whole", chats, template=TEMPLATE, context=64, roles="user")
    assert [kept for _, kept in texts(lm, users)][:2] == ["question 0?", "question 1?"]
    assert len(users) == 31
    both = [
        chat_windows(lm, split, chats, template=TEMPLATE, context=64, held_out=0.3)
        for split in ("train", "eval")
    ]
    assert sum(map(len, both)) == 30 and min(map(len, both)) > 2


def test_a_long_conversation_is_split_or_cut(lm: LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"messages": talk("why " * 40, " ".join(["so"] * 40), "and " * 90, "no")}) + "\n"
    )
    options: dict[str, Any] = {"template": TEMPLATE, "context": 32, "held_out": 0.0}
    split = chat_windows(lm, "train", str(tmp_path / "a.jsonl"), **options)
    assert "".join(kept for _, kept in texts(lm, split)) == " ".join(["so"] * 40) + "no"
    assert all(windows_kept.any() for windows_kept in split.kept(range(len(split))))
    with pytest.raises(
        ValueError, match=r"no window of data\.context=32 tokens has a token to keep"
    ):
        chat_windows(lm, "train", str(tmp_path / "a.jsonl"), long="cut", **options)


def test_max_tokens_counts_what_is_kept(lm: LanguageModel, chats: str) -> None:
    some = chat_windows(lm, "train", chats, template=TEMPLATE, context=64, max_tokens=50)
    assert 50 <= some.n_kept < 80 and some.n_read > 100


def test_rows_to_train_on_are_the_kept_tokens(lm: LanguageModel, chats: str) -> None:
    windows = chat_windows(lm, "train", chats, template=TEMPLATE, context=64)
    site = ("resid_post.0",)
    sizes: Any = {"batch_tokens": 256, "buffer_tokens": 1024, "lm_batch_windows": 4}
    source = LiveSource(lm, windows, sources=site, targets=site, seed=0, **sizes)
    everything = range(len(windows))
    tokens, kept = windows.window_batch(everything), windows.kept(everything)
    position = torch.arange(64).expand_as(tokens)
    expected = set(zip(tokens[kept].tolist(), position[kept].tolist(), strict=True))
    batch = source.next_batch()
    assert set(zip(batch.tokens_N.tolist(), batch.positions_N.tolist(), strict=True)) <= expected


def test_windows_to_train_on_have_the_same_mask(lm: LanguageModel, chats: str) -> None:
    windows = chat_windows(lm, "train", chats, template=TEMPLATE, context=64)
    site: Any = ("resid_post.0",)
    for length in (64, 16):
        source = WindowsSource(
            lm, windows, sources=site, targets=site, batch_tokens=128, seed=0, window_tokens=length
        )
        batch = source.next_batch()
        assert batch.tokens_BP is not None and batch.valid_BP is not None
        pieces = ShorterWindows(windows, length)
        everything = range(len(pieces))
        masks: dict[tuple[int, ...], list[bool]] = {
            tuple(tokens.tolist()): kept.tolist()
            for tokens, kept in zip(
                pieces.window_batch(everything), pieces.kept(everything), strict=True
            )
        }
        found = zip(batch.tokens_BP.tolist(), batch.valid_BP.tolist(), strict=True)
        assert all(masks[tuple(tokens)] == kept for tokens, kept in found)


def test_figures_are_over_kept_tokens_and_their_predictions(lm: LanguageModel, chats: str) -> None:
    windows = chat_windows(lm, "eval", chats, template=TEMPLATE, context=64, held_out=0.3)
    kept = windows.kept(range(len(windows)))
    dictionary = sae(lm.info, partial(TopK, k=4), "resid_post.1", n_features=64, k=4).eval()
    evals = {"sparsity": Sparsity(), "downstream": Downstream()}
    found = evaluate_dictionary(dictionary, lm, windows, evals, n_tokens=windows.n_read * 9)
    assert found.figures["scored_tokens"] == int((kept[:, 1:] & kept[:, :-1]).sum())
    clean = lm.logits(windows.window_batch(range(len(windows)))).double().log_softmax(-1)
    following = windows.window_batch(range(len(windows)))[:, 1:, None]
    ce = -clean[:, :-1].gather(2, following)[..., 0][kept[:, 1:] & kept[:, :-1]].mean()
    assert abs(found.figures["ce_clean"] - float(ce)) < 1e-4
    users = chat_windows(
        lm, "eval", chats, template=TEMPLATE, context=64, held_out=0.3, roles=["user", "assistant"]
    )
    assert torch.equal(*(w.window_batch(range(len(kept))) for w in (users, windows)))
    other = evaluate_dictionary(dictionary, lm, users, evals, n_tokens=windows.n_read * 9)
    assert other.figures["scored_tokens"] > found.figures["scored_tokens"]
    assert other.tokens_sha256 != found.tokens_sha256, (
        "another mask of the same tokens is another text"
    )


def test_mistakes_are_named(lm: LanguageModel, chats: str, tmp_path: Path) -> None:
    said = {
        r"^data=chat: no conversations were named; want data\.paths=": {"paths": ()},
        r"^data=chat: both were given": {"path": "owner/name"},
        r"^data\.template=null: the tokenizer has no chat template; want data\.template=": {},
        r"^data\.template=.*nowhere\.jinja: No such file": {
            "template": str(tmp_path / "nowhere.jinja")
        },
        r"^data\.prompt=q: want data\.response as well": {"prompt": "q"},
        r"^data\.response=r: want data\.prompt as well": {"response": "r"},
        r"^data\.roles=\[\]: want": {"roles": []},
        r"^data\.template_tokens=some: want drop or keep": {"template_tokens": "some"},
        r"^data\.roles=\[asistant\]: no turn is of asistant; the roles here are assistant, user$": {
            "template": TEMPLATE,
            "roles": ["asistant"],
        },
        r"^data\.paths=.*: there is no text to read.* 31 conversations that the template refuses$": {
            "template": "{{ raise_exception('never') }}"
        },
        r"^data\.template: it is not a Jinja template": {"template": "{% for %}"},
    }
    for sentence, options in said.items():
        with pytest.raises(ValueError, match=sentence):
            chat_windows(lm, "train", **({"paths": chats} | options))  # type: ignore[arg-type]


def test_a_role_that_occurs_nowhere_is_named(
    lm: LanguageModel, chats: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"template": TEMPLATE, "context": 64}
    for _ in range(2):  # the second time the tokens are on disk
        with pytest.raises(
            ValueError, match=r"no turn is of bot or tool; the roles here are assis"
        ):
            chat_windows(lm, "whole", chats, roles=["bot", "tool"], **options)
    assert len(chat_windows(lm, "whole", chats, roles=["assistant", "usr"], **options)) == 30
    assert "data.roles=[assistant,usr]: no turn is of usr; the roles here are" in caplog.text


def test_a_template_may_be_a_file(lm: LanguageModel, chats: str, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text(TEMPLATE)
    from_file = chat_windows(lm, "train", chats, template=str(tmp_path / "own.jinja"), context=64)
    given = chat_windows(lm, "train", chats, template=TEMPLATE, context=64)
    assert torch.equal(from_file.window_batch([0, 1]), given.window_batch([0, 1]))
