"""Tokenise documents into two streams, train and eval."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dictlearn.sources.documents import Document, is_held_out, without_duplicates
from dictlearn.sources.left_out import BEYOND, EMPTY, LeftOut

log = logging.getLogger(__name__)

SPLITS = ("train", "eval")


class Encoded(NamedTuple):
    """A document's tokens."""

    ids: list[int]
    chosen: list[bool] | None = None  # the tokens to keep; None keeps all but special ones


Encode = Callable[[list[str], LeftOut], list[Encoded | None]]
"""Encodes documents; returns None for those that it leaves out, and counts them by reason."""


def tokenised(
    read: Callable[[LeftOut], Iterable[Document]],
    encode: Encode,
    held_out: float,
    max_tokens: int | None,
    longest: int | None = None,
) -> dict[str, Tensor]:
    """The tokens of both splits, int32, the offsets of their documents, int64, and what was left out.

    If `encode` chooses tokens, `<split>_chosen` marks them, uint8.

    Args:
        read: returns the documents and counts what it leaves out in its argument.
        max_tokens: reading stops at this number of tokens to train on; None reads all.
        longest: the number of tokens after which a document is cut; None cuts none.
    """
    log.info("data: tokenising; later runs find the tokens on disk")
    start = time.monotonic()
    streams = {split: _Stream() for split in SPLITS}
    left_out, full = LeftOut(), False
    for batch in _batches(without_duplicates(read(left_out), left_out), 256):
        for document, encoded in zip(batch, encode([d.text for d in batch], left_out), strict=True):
            split = "eval" if is_held_out(document.key, held_out) else "train"
            if encoded is not None and not (full and split == "train"):
                left_out[BEYOND] += streams[split].add(encoded, longest)
                full = max_tokens is not None and streams["train"].n_seen >= max_tokens
        if full:
            break
    tokens: dict[str, Tensor] = {}
    for split, stream in streams.items():
        tokens |= stream.tensors(split, max_tokens if split == "train" else None)
    log.info(
        "data: tokenised %s tokens to train on and %s held out, in %.0f s",
        *(f"{stream.n_seen:,}" for stream in streams.values()),
        time.monotonic() - start,
    )
    tokens["left_out"] = torch.frombuffer(
        bytearray(json.dumps(left_out).encode()), dtype=torch.uint8
    )
    return tokens


def left_out_of(streams: dict[str, Tensor]) -> LeftOut:
    """The counts that `tokenised` stored with the streams."""
    return LeftOut(json.loads(bytes(streams["left_out"].tolist())))


class _Stream:
    """The tokens of one split, while documents are added."""

    def __init__(self) -> None:
        self.n_seen = 0  # chosen tokens; if none are chosen, all
        self._ids = [torch.empty(0, dtype=torch.int32)]
        self._chosen = [torch.empty(0, dtype=torch.uint8)]

    def add(self, encoded: Encoded, longest: int | None) -> int:
        """Adds a document, cut after `longest` tokens; returns the number of tokens cut off."""
        ids = encoded.ids[:longest]
        self._ids.append(torch.tensor(ids, dtype=torch.int32))
        if encoded.chosen is not None:
            self._chosen.append(torch.tensor(encoded.chosen[:longest], dtype=torch.uint8))
        self.n_seen += len(ids) if encoded.chosen is None else int(self._chosen[-1].sum())
        return len(encoded.ids) - len(ids)

    def tensors(self, split: str, limit: int | None) -> dict[str, Tensor]:
        """The tensors to store. A stream without chosen tokens is cut after `limit` tokens."""
        ids, chosen = torch.cat(self._ids), torch.cat(self._chosen)
        if len(chosen) == 0:
            ids = ids[:limit]
        starts = torch.tensor([len(part) for part in self._ids]).cumsum(0)[:-1]
        tensors = {split: ids, f"{split}_starts": starts[starts < len(ids)]}
        return tensors | ({f"{split}_chosen": chosen} if len(chosen) else {})


def plain_encoder(tokenizer: PreTrainedTokenizerBase, first_id: int | None) -> Encode:
    """Encodes each text as `first_id`, if there is one, and the tokens of the text."""
    ids_of = _without_specials(tokenizer)
    before = [] if first_id is None else [first_id]

    def encode(texts: list[str], left_out: LeftOut) -> list[Encoded | None]:
        documents: list[Encoded | None] = [
            Encoded(before + ids) if ids else None for ids in ids_of(texts)
        ]
        left_out[EMPTY] += documents.count(None)
        return documents

    return encode


def _without_specials(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Encodes texts without special tokens: a special token's name in a text is ordinary text."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        options: dict[str, Any] = {"split_special_tokens": True, "verbose": False}
        return lambda texts: tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # a copy, which is changed
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    # encode_batch_fast skips the offsets, which take a third of the time.
    return lambda texts: [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=False)]


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    documents = iter(documents)
    while batch := list(islice(documents, size)):
        yield batch
