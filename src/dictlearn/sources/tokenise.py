"""Tokenise documents into two streams, train and eval."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dictlearn.sources.documents import Document, is_held_out, without_duplicates
from dictlearn.sources.left_out import EMPTY, LeftOut

log = logging.getLogger(__name__)

SPLITS = ("train", "eval")


def tokenised(
    read: Callable[[LeftOut], Iterable[Document]],
    tokenizer: PreTrainedTokenizerBase,
    first_id: int | None,
    held_out: float,
    max_tokens: int | None,
) -> dict[str, Tensor]:
    """The tokens of both splits, int32, the offsets of their documents, int64, and what was left out.

    `read` returns the documents and counts what it leaves out in its argument.
    """
    log.info("data: tokenising; later runs find the tokens on disk")
    start = time.monotonic()
    encode = _encoder(tokenizer)
    before = [] if first_id is None else [first_id]
    streams: dict[str, list[Tensor]] = {
        split: [torch.empty(0, dtype=torch.int32)] for split in SPLITS
    }
    n_train, left_out = 0, LeftOut()
    for batch in _batches(without_duplicates(read(left_out), left_out), 256):
        for document, ids in zip(batch, encode([d.text for d in batch]), strict=True):
            split = "eval" if is_held_out(document.key, held_out) else "train"
            if ids:
                streams[split].append(torch.tensor(before + ids, dtype=torch.int32))
                n_train += len(streams[split][-1]) if split == "train" else 0
            else:
                left_out[EMPTY] += 1
        if max_tokens is not None and n_train >= max_tokens:
            break
    tokens = {split: torch.cat(parts) for split, parts in streams.items()}
    if max_tokens is not None:
        tokens["train"] = tokens["train"][:max_tokens]
    for split, parts in streams.items():  # the first part is empty
        starts = torch.tensor([len(part) for part in parts]).cumsum(0)[:-1]
        tokens[f"{split}_starts"] = starts[starts < len(tokens[split])]
    log.info(
        "data: tokenised %s tokens to train on and %s held out, in %.0f s",
        *(f"{len(tokens[split]):,}" for split in SPLITS),
        time.monotonic() - start,
    )
    tokens["left_out"] = torch.frombuffer(
        bytearray(json.dumps(left_out).encode()), dtype=torch.uint8
    )
    return tokens


def left_out_of(streams: dict[str, Tensor]) -> LeftOut:
    """The counts that `tokenised` stored with the streams."""
    return LeftOut(json.loads(bytes(streams["left_out"].tolist())))


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
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
