"""Windows of tokens, and the builders of conf/data: stdlib, text, hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from dictlearn.lm.fingerprint import tokenizer_hash
from dictlearn.lm.language_model import LanguageModel, document_start, pad_id
from dictlearn.ranges import Count, Fraction
from dictlearn.schema import shown
from dictlearn.sources.documents import Document, stdlib_documents, stdlib_files
from dictlearn.sources.hub_text import hub_documents
from dictlearn.sources.left_out import LeftOut
from dictlearn.sources.text_files import find_files, text_documents
from dictlearn.sources.token_cache import cached
from dictlearn.sources.token_windows import TokenWindows
from dictlearn.sources.tokenise import SPLITS, Encode, left_out_of, plain_encoder, tokenised
from dictlearn.types import ModelInfo

log = logging.getLogger(__name__)

WHOLE = "whole"  # the split that contains all of the text
LONG = ("split", "cut")  # treatments of a document that is longer than a window


@final
@dataclass(frozen=True)
class Corpus:
    """Documents, with the options of their encoding.

    Args:
        named: the key and value that name the text, for messages.
        name, files: name of the text and its files; the cache depends on their sizes and times.
        documents: reads the documents, if the cache lacks them; counts what it leaves out.
        encode: encodes documents; None for plain text, each preceded by the model's BOS. `name` must
            contain everything that the encoding depends on, except the tokenizer.
        apart: whether each document has windows of its own.
        unseen_ids: ids that no dictionary reads; None for the special ones.
        check: refuses settings that the documents, as they were counted, don't go with.
    """

    named: str
    name: str
    files: Callable[[], list[Path]]
    documents: Callable[[LeftOut], Iterable[Document]]
    encode: Encode | None = None
    apart: bool = False
    unseen_ids: frozenset[int] | None = None
    check: Callable[[LeftOut], None] | None = None


def stdlib_windows(
    lm: LanguageModel,
    split: str,
    context: Count | None = 512,
    held_out: Fraction = 0.1,
    max_tokens: Count | None = None,
) -> TokenWindows:
    """The running interpreter's standard library. See `windows` for the arguments."""
    corpus = Corpus("data=stdlib", "stdlib", stdlib_files, stdlib_documents)
    return windows(lm, split, context, held_out, max_tokens, "split", corpus)


def text_windows(
    lm: LanguageModel,
    split: str,
    paths: str | Sequence[str],
    field: str | None = "text",
    split_on: str | None = None,
    long: Literal["split", "cut"] = "split",
    context: Count | None = 512,
    held_out: Fraction = 0.1,
    max_tokens: Count | None = None,
) -> TokenWindows:
    """Local files. See `text_documents` for paths, field and split_on, `windows` for the rest."""
    listed = [paths] if isinstance(paths, str) else list(paths)
    corpus = Corpus(
        f"data.paths={shown(listed)}",
        f"text {field} {split_on!r}",
        lambda: find_files(listed),
        lambda left_out: text_documents(listed, field, split_on, left_out),
    )
    return windows(lm, split, context, held_out, max_tokens, long, corpus)


def hub_windows(
    lm: LanguageModel,
    split: str,
    path: str | None,
    name: str | None = None,
    hub_split: str = "train",
    field: str = "text",
    revision: str | None = None,
    long: Literal["split", "cut"] = "split",
    context: Count | None = 512,
    held_out: Fraction = 0.1,
    max_tokens: Count | None = 20_000_000,
) -> TokenWindows:
    """A data set of the hub or a folder in its layout. See `hub_documents` and `windows`.

    Later runs read the cached tokens of a data set on the hub, offline too, even if it has changed:
    pin a `revision` or change `max_tokens` to read it again.
    """
    if path is None:
        raise ValueError("data.path=null: want a data set's hub id (owner/name) or a folder")
    corpus = Corpus(
        f"data.path={path}",
        f"hub {path} {name} {hub_split} {field} {revision}",
        lambda: files_below(path),
        lambda left_out: hub_documents(path, name, hub_split, field, revision, left_out),
    )
    return windows(lm, split, context, held_out, max_tokens, long, corpus)


def files_below(path: str) -> list[Path]:
    """The files of a folder, sorted; none if `path` is a hub id."""
    return sorted(file for file in Path(path).expanduser().rglob("*") if file.is_file())


def windows(
    lm: LanguageModel,
    split: str,
    context: Count | None,
    held_out: Fraction,
    max_tokens: Count | None,
    long: str,
    corpus: Corpus,
) -> TokenWindows:
    """The windows of one split of some documents, which are tokenised once and cached on disk.

    Args:
        split: train, eval for the documents that are held out, or whole for all of them.
        context: P, tokens per window; None for the model's context length.
        held_out: the fraction of documents in eval, by hash of their keys; 0 for no eval.
        max_tokens: reading stops when train has this number of tokens; None reads all.
        long: split, or cut to leave out the rest of a document after `context` tokens.

    One pass over the documents makes both splits and skips repeated texts, so no document is in
    both. If there is only one document, the last of its windows are held out. Each process logs once
    what was left out. Raises ValueError, in one sentence that names the key.
    """
    if split not in (*SPLITS, WHOLE):
        raise ValueError(f"split={split}: want {', '.join(SPLITS)} or {WHOLE}")
    if lm.tokenizer is None:
        raise ValueError(
            f"model.path={lm.info.name}: has no tokenizer; text data wants one, or another source"
        )
    if long not in LONG:
        raise ValueError(f"data.long={long}: want {' or '.join(LONG)}")
    context = check_settings(lm.info, context, held_out, max_tokens)
    if split == WHOLE:
        split, held_out = "train", 0.0

    longest = context if long == "cut" else None
    key, streams = _read_streams(lm, corpus, held_out, max_tokens, longest)
    left_out = left_out_of(streams)
    for sentence in left_out.sentences():
        say_once(key, sentence)
    if corpus.check is not None:
        corpus.check(left_out)
    n_documents = sum(len(streams[f"{side}_starts"]) for side in SPLITS)
    if held_out > 0 and n_documents == 1 and not corpus.apart:
        streams = _cut_in_two(streams, context, held_out, key)
    # A training run checks both splits: it evaluates at its end and should fail before it starts.
    for side in SPLITS if held_out > 0 else dict.fromkeys(["train", split]):
        if not len(streams[side]):
            raise _empty(corpus.named, side, held_out, n_documents, left_out)
        _refuse_too_little(lm, len(streams[side]), side, context, held_out)
    starts, chosen = streams[f"{split}_starts"], streams.get(f"{split}_chosen")
    return TokenWindows(
        streams[split],
        context,
        lm.special_ids if corpus.unseen_ids is None else corpus.unseen_ids,
        pad_id(lm),
        starts,
        None if chosen is None else chosen.bool(),
        corpus.apart,
    )


def _read_streams(
    lm: LanguageModel, corpus: Corpus, held_out: float, max_tokens: int | None, longest: int | None
) -> tuple[str, dict[str, Tensor]]:
    """(cache key, the streams of both splits), from the cache or from the documents."""
    first_id, tokenizer = document_start(lm), lm.tokenizer
    assert tokenizer is not None
    stamps = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in corpus.files()]
    settings = [corpus.name, tokenizer_hash(tokenizer), first_id, held_out, max_tokens, longest]
    key = json.dumps([*settings, stamps])
    encode = corpus.encode or plain_encoder(tokenizer, first_id)
    return key, cached(
        key, lambda: tokenised(corpus.documents, encode, held_out, max_tokens, longest)
    )


def check_settings(
    info: ModelInfo, context: int | None, held_out: float, max_tokens: int | None
) -> int:
    """The number of tokens per window. Raises ValueError for settings out of range."""
    if context is None and not info.context_length:
        raise ValueError(
            f"data.context=null: {info.name} does not say how many tokens it reads; want a number "
            f"of tokens, such as data.context=512"
        )
    context = info.context_length if context is None else context
    reads = info.context_length or max(context, 2)
    if not 2 <= context <= reads:
        raise ValueError(
            f"data.context={context}: {info.name} reads 2 to {reads} tokens"
            f"{f'; set data.context={reads}' if context > reads else ''}"
            if info.context_length
            else f"data.context={context}: want 2 tokens or more"
        )
    if not 0 <= held_out < 1:
        raise ValueError(f"data.held_out={held_out}: want a fraction from 0 to below 1")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"data.max_tokens={max_tokens}: want 1 or more, or null for all")
    return context


def _cut_in_two(
    streams: dict[str, Tensor], context: int, held_out: float, key: str
) -> dict[str, Tensor]:
    """Splits a single document between its windows: the last ones are held out."""
    (stream,) = (streams[side] for side in SPLITS if len(streams[side]))
    n = -(-len(stream) // context)
    if n == 1:
        raise ValueError(
            f"data: all the text there is, one document of {len(stream):,} tokens, is one window of "
            f"data.context={context}; want more text or a smaller data.context"
        )
    n_held_out = min(max(1, round(held_out * n)), n - 1)
    last = f"the last {n_held_out:,} of its {n:,} windows are held out"
    if n_held_out == 1:
        last = f"the last of its {n:,} windows is held out"
    hint = "data.split_on='\\n\\n' makes a document of each paragraph"
    say_once(key, f"data: one document is all the text there is: {last} ({hint})")
    at, start = (n - n_held_out) * context, torch.zeros(1, dtype=torch.int64)
    return {
        "train": stream[:at],
        "train_starts": start,
        "eval": stream[at:],
        "eval_starts": start,
    }


_logged: set[tuple[str, str]] = set()


def say_once(key: str, sentence: str) -> None:
    """Warns once per process, which may read one text several times."""
    if (key, sentence) not in _logged:
        _logged.add((key, sentence))
        log.warning(sentence)


def _refuse_too_little(
    lm: LanguageModel, n_tokens: int, side: str, context: int, held_out: float
) -> None:
    if n_tokens < context and pad_id(lm) is None:
        key, part = "data", "the text"
        if held_out > 0:
            key = f"data.held_out={held_out}"
            part = "the held-out text" if side == "eval" else "the text to train on"
        raise ValueError(
            f"{key}: {part} is {n_tokens:,} tokens, less than a window of data.context="
            f"{context}, and {lm.info.name} has no special token for padding; want more text "
            f"or a smaller data.context"
        )


def _empty(
    named: str, side: str, held_out: Fraction, n_documents: int, left_out: LeftOut
) -> ValueError:
    if side == "eval" and held_out == 0:
        return ValueError("data.held_out=0: holds out no text to evaluate on; want more than 0")
    if n_documents == 0:
        why = "".join(f"; {line.removeprefix('data: ')}" for line in left_out.sentences())
        return ValueError(f"{named}: there is no text to read, as no document has any{why}")
    return ValueError(
        f"data.held_out={held_out}: no document is left for {side}, of {n_documents:,} in all; want more "
        f"documents (data.split_on='\\n\\n' makes one of each paragraph of plain text, JSON lines hold "
        f"one per line) or another fraction"
    )
