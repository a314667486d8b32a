"""A conversation's text and tokens are the tokenizer's own, and each turn is found where it stands."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dictlearn.lm.load import load_skeleton
from dictlearn.sources.chat import ChatEncoder
from dictlearn.sources.conversations import Conversation, Message, as_text
from dictlearn.sources.left_out import MIXED, REFUSED, SILENT, LeftOut
from dictlearn.sources.turns import NotApart, Refused, Template, turns

TEMPLATES = Path(__file__).parent / "templates"
MARKS = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"]
CALL = {"function": {"name": "add", "arguments": {"a": 1, "b": [2]}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "a sum"}}


def said(role: str, content: str, **more: object) -> Message:
    return {"role": role, "content": content, **more}


# The assistant's words are those of headers and of users too: they cannot be looked for.
TALKS: dict[str, Conversation] = {
    "one": Conversation([said("user", "user"), said("assistant", "assistant\nuser")], None),
    "several": Conversation(
        [
            *(said("user", "Hi assistant\n"), said("assistant", "assistant")),
            *(said("user", "  und? "), said("assistant", "\n no \U0001f600é\t\n")),
        ],
        None,
    ),
    "system": Conversation(
        [said("system", "Be brief."), said("user", "Hi"), said("assistant", "Hi")], None
    ),
    "thoughts": Conversation(
        [
            *(said("user", "a?"), said("assistant", "<think>\nold\n</think>\n\nA")),
            *(said("user", "b?"), said("assistant", "<think>\nnew\n</think>\n\nB")),
        ],
        None,
    ),
    "empty": Conversation(
        [
            *(said("user", ""), said("assistant", "")),
            *(said("user", "so?"), said("assistant", "yes")),
        ],
        None,
    ),
    "tools": Conversation(
        [
            *(said("user", "1+2?"), said("assistant", "", tool_calls=[CALL])),
            *(said("tool", "3"), said("assistant", "three")),
        ],
        [TOOL],
    ),
}


@cache
def template(name: str) -> Template:
    return Template(tokenizer("pico"), (TEMPLATES / f"{name}.jinja").read_text())


@cache
def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Three sorts of spaces and offsets: merges of bytes, GPT-2's trimmed offsets, SentencePiece's."""
    if kind == "pico":
        found = load_skeleton("pico", tokenizer=True).tokenizer
        assert isinstance(found, PreTrainedTokenizerFast)
        found.add_special_tokens({"extra_special_tokens": MARKS})
        return found
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    letters = alphabet if kind == "trimmed" else sorted({*map(chr, range(128)), *"▁é\U0001f600"})
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<unk>", *letters, "▁a"])}
    merges = [] if kind == "trimmed" else [("▁", "a")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>"))
    if kind == "trimmed":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
        backend.decoder = decoders.ByteLevel()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
    backend.enable_truncation(4)  # some tokenizers on the hub come like this
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=MARKS,
    )


NAMES = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))


@pytest.mark.parametrize("kind", ["pico", "trimmed", "metaspace"])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_apply_chat_template(name: str, kind: str) -> None:
    own, left_out = tokenizer(kind), LeftOut()
    filled = Template(own, (TEMPLATES / f"{name}.jinja").read_text())
    encode = ChatEncoder(own, filled, ["user", "assistant"], keep_template=True)
    n = 0
    for conversation in TALKS.values():
        (encoded,) = encode([as_text(conversation)], left_out)
        if encoded is None:
            continue
        theirs = own.apply_chat_template(
            conversation.messages,
            tools=conversation.tools,
            chat_template=filled.source(conversation.tools),
            return_dict=False,
        )
        assert encoded.ids == theirs
        n += 1
    assert n == 6 - left_out[REFUSED] >= 5 and not left_out[MIXED]


@pytest.mark.parametrize("kind", ["pico", "trimmed", "metaspace"])
@pytest.mark.parametrize("name", NAMES)
def test_the_tokens_of_a_turn_hold_its_text_and_no_more(name: str, kind: str) -> None:
    own = tokenizer(kind)
    filled = Template(own, (TEMPLATES / f"{name}.jinja").read_text())
    encode = ChatEncoder(own, filled, ["assistant"])
    for conversation in (TALKS["one"], TALKS["several"], TALKS["thoughts"]):
        text, spans = turns(filled, conversation, ["assistant"])
        (encoded,) = encode([as_text(conversation)], LeftOut())
        assert encoded is not None and encoded.chosen is not None
        chosen = [i for i, keep in zip(encoded.ids, encoded.chosen, strict=True) if keep]
        expected = "".join(text[start:stop] for start, stop in spans)
        # One token may hold white space of the template and of the turn.
        assert "".join(str(own.decode(chosen)).split()) == "".join(expected.split())


EXPECTED = {
    ("chatml_thoughts", "several"): ["assistant", "\n no \U0001f600é\t\n"],
    ("headers_dated", "several"): ["assistant", "no \U0001f600é"],
    ("chatml_thoughts", "thoughts"): ["A", "new\n</think>\n\nB"],
    ("alternating", "thoughts"): ["<think>\nold\n</think>\n\nA", "<think>\nnew\n</think>\n\nB"],
    ("brackets", "system"): ["Hi"],
    ("alternating", "empty"): ["", "yes"],
    ("chatml_thoughts", "tools"): [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": [2]}}\n</tool_call>',
        "three",
    ],
    ("headers_dated", "tools"): ['{"name": "add", "parameters": {"a": 1, "b": [2]}}', "three"],
}


@pytest.mark.parametrize(("name", "talk"), EXPECTED)
def test_what_the_assistant_said(name: str, talk: str) -> None:
    text, spans = turns(template(name), TALKS[talk], ["assistant"])
    assert [text[start:stop] for start, stop in spans] == EXPECTED[name, talk]
    assert text == template(name).render(*TALKS[talk])


AROUND = {
    (
        "chatml_thoughts",
        "assistant",
    ): "<|im_start|>assistant\n<think>\n\n</think>\n\nHi<|im_end|>\n",
    ("headers_dated", "user"): "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    ("alternating", "assistant"): "<start_of_turn>model\nHi<end_of_turn>\n",
    ("alternating", "user"): "\n\nHi<end_of_turn>\n",  # the system message has opened the turn
    ("brackets", "assistant"): " Hi<|bos|>",  # which is pico's end of text too
}


@pytest.mark.parametrize(("name", "role"), AROUND)
def test_what_the_template_puts_around_a_turn(name: str, role: str) -> None:
    text, ((start, stop),) = turns(template(name), TALKS["system"], [role], around=True)
    assert text[start:stop] == AROUND[name, role]


def test_turns_are_those_that_a_template_marks_itself() -> None:
    own, filled = tokenizer("pico"), template("marked")
    for talk in ("one", "system"):
        (encoded,) = ChatEncoder(own, filled, ["assistant"])([as_text(TALKS[talk])], LeftOut())
        theirs: Any = own.apply_chat_template(
            TALKS[talk].messages,
            chat_template=filled.source(),
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        assert encoded is not None and encoded.chosen is not None
        assert list(map(int, encoded.chosen)) == theirs["assistant_masks"]


def test_the_date_is_no_part_of_a_text() -> None:
    assert "Today is 26 Jul 2024\n" in template("headers_dated").render(*TALKS["one"])


def test_a_template_has_variables_of_its_own() -> None:
    source = "{% for m in messages %}{{ m.content }}{{ mark }}{% endfor %}"
    filled = Template(tokenizer("pico"), source, {"mark": "|"})
    assert filled.render(TALKS["system"].messages) == "Be brief.|Hi|Hi|"
    for name in ("messages", "tokenize", "add_generation_prompt"):
        with pytest.raises(ValueError, match=rf"^data\.template_values\.{name}: is no variable"):
            Template(tokenizer("pico"), source, {name: True})


def test_what_a_template_refuses_or_mixes_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    left_out = LeftOut()
    odd = Conversation([said("assistant", "first"), said("user", "then")], None)
    encode = ChatEncoder(tokenizer("pico"), template("alternating"), ["assistant"])
    assert encode([as_text(odd), as_text(odd)], left_out) == [None, None]
    assert caplog.messages == [
        "data: the template refuses a conversation: Conversation roles must alternate user/assistant"
    ]
    with pytest.raises(Refused):
        template("alternating").render(odd.messages)

    mixed = Template(tokenizer("pico"), "{{ messages | map(attribute='content') | join | upper }}")
    doubled = Template(tokenizer("pico"), "{% for m in messages %}{{ m.content * 2 }}{% endfor %}")
    text, spans = turns(mixed, TALKS["one"], ["assistant"])
    assert [text[start:stop] for start, stop in spans] == ["ASSISTANT\nUSER"]
    with pytest.raises(NotApart):
        turns(doubled, TALKS["one"], ["assistant"])
    # One message decides how another one looks.
    reaching = (
        "{% for m in messages %}{{ m.content }}{{ messages[0].content | length }};{% endfor %}"
    )
    encode = ChatEncoder(tokenizer("pico"), Template(tokenizer("pico"), reaching), ["assistant"])
    assert encode([as_text(TALKS["one"])], left_out) == [None]
    silent = Conversation([said("user", "anybody?")], None)
    encode = ChatEncoder(tokenizer("pico"), template("alternating"), ["assistant"])
    assert encode([as_text(silent)], left_out) == [None]
    assert left_out.roles() == ["assistant", "user"]
    assert {key: left_out[key] for key in (REFUSED, MIXED, SILENT)} == {
        REFUSED: 2,
        MIXED: 1,
        SILENT: 1,
    }


def test_a_template_runs_in_a_sandbox() -> None:
    for source in (
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
    ):
        with pytest.raises(Refused):
            Template(tokenizer("pico"), source).render(TALKS["one"].messages)
    with pytest.raises(ValueError, match=r"^data\.template: it is not a Jinja template: line 2: "):
        Template(tokenizer("pico"), "\n{% for %}").render(TALKS["one"].messages)
