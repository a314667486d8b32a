"""Pieces that together are the text, whatever the tokenizer's alphabet."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from dictlearn.store.text import token_text
from tests.store.made import pico_tokenizer


@pytest.mark.parametrize(
    "text", ["def f(x):\n\treturn x  # one", "  'tabs\t' and \r\n ends", "@decor"]
)
def test_pieces_of_a_byte_level_tokenizer_are_the_text(text: str):
    tokenizer = pico_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = token_text(tokenizer, ids)  # type: ignore[arg-type]
    assert "".join(pieces) == text and len(pieces) == len(ids)  # type: ignore[arg-type]


def test_half_a_character_is_shown_by_its_bytes():
    tokenizer = pico_tokenizer()
    ids = tokenizer("é", add_special_tokens=False)["input_ids"]
    assert token_text(tokenizer, ids) == ["\\xc3", "\\xa9"]  # type: ignore[arg-type]


def test_specials_and_unknown_ids_have_a_name():
    assert token_text(pico_tokenizer(), [1, 0, 10**6]) == ["<|bos|>", "<|pad|>", "<1000000>"]


def test_sentencepiece_spells_spaces_and_bytes_otherwise():
    vocabulary = {"▁the": 0, "▁": 1, "<0xE2>": 2, "cat": 3, "<0x0A>": 4}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert token_text(tokenizer, [0, 1, 3, 2, 4]) == [" the", " ", "cat", "\\xe2", "\n"]
