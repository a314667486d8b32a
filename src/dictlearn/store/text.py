"""Token ids as pieces of text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how sentencepiece spells a byte
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair, which no UTF-8 file can hold.

    A language model can write half an emoji, and JSON can spell it.
    """
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)


def token_text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    r"""One piece of text for each id; concatenated they are the text.

    Tokens that split a character are shown as its bytes, \xNN. An id that is not in the vocabulary is
    shown as <id>.
    """
    names: list[str | None] = tokenizer.convert_ids_to_tokens(list(ids))  # type: ignore[assignment]
    added = tokenizer.added_tokens_decoder
    byte_level = _is_byte_level(tokenizer)
    pieces = []
    for number, name in zip(ids, names, strict=True):
        if number in added:
            pieces.append(str(added[number]))
        elif name is None:
            pieces.append(f"<{number}>")
        else:
            pieces.append(_from_bytes(name) if byte_level else _from_pieces(name))
    return pieces


def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a token's name spells its bytes in the alphabet of GPT-2."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    return "ByteLevel" in repr(tokenizer.backend_tokenizer.decoder)


def _from_bytes(name: str) -> str:
    table = _alphabet()
    if not all(letter in table for letter in name):
        return name
    return bytes(table[letter] for letter in name).decode("utf-8", "backslashreplace")


def _from_pieces(name: str) -> str:
    if match := _BYTE.fullmatch(name):
        return bytes([int(match[1], 16)]).decode("utf-8", "backslashreplace")
    return name.replace("▁", " ")


@cache
def _alphabet() -> dict[str, int]:
    """GPT-2's letter for each byte: itself where it prints, else the next free one from 256 on."""
    printing = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1)]
    printing += range(ord("®"), ord("ÿ") + 1)
    table = {chr(byte): byte for byte in printing}
    others = [byte for byte in range(256) if byte not in printing]
    return table | {chr(256 + i): byte for i, byte in enumerate(others)}
