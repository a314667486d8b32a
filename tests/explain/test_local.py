"""A model on this machine, through its chat template."""

from __future__ import annotations

import asyncio

import pytest

from dictlearn.explain.local import Local
from dictlearn.lm.load import load_model

ASKED = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
EACH = "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}{% endfor %}"
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
)


@pytest.fixture
def pico():
    client = Local("pico", "cpu")
    client._lm = load_model("pico", device="cpu")
    return client


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (EACH, "[system]be brief[user]hi"),
        (NO_SYSTEM + EACH, "[user]be brief\n\nhi"),
        (None, "be brief\n\nhi\n"),
    ],
    ids=["system", "no system", "none"],
)
def test_a_prompt_goes_through_the_chat_template(pico, template, expected):
    """Where it knows no system role, the system's text goes in front of the user's."""
    tokenizer = pico._lm.tokenizer
    tokenizer.chat_template = template
    assert pico._prompted(tokenizer, ASKED) == expected
    answer = asyncio.run(pico.complete(ASKED, 3))
    assert answer.tokens_out <= 3 and answer.tokens_in > 1


def test_a_template_that_takes_nothing_is_named(pico):
    pico._lm.tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(ValueError, match="explainer.path=pico: its chat template .*never"):
        asyncio.run(pico.complete(ASKED, 3))


def test_more_tokens_than_the_model_reads_are_refused(pico):
    with pytest.raises(ValueError, match="up to 100000 tokens .*lower explainer.max_tokens"):
        asyncio.run(pico.complete(ASKED, 100_000))
