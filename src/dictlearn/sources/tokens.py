"""From documents to windows of tokens, and the builders behind conf/data: stdlib, text, hub."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from dictlearn.lm.fingerprint import tokenizer_hash
from dictlearn.lm.language_model import LanguageModel, document_start, pad_id
from dictlearn.ranges import Count, Fraction
from dictlearn.sources.documents import Document, stdlib_documents, stdlib_files
from dictlearn.sources.hub_text import hub_documents
from dictlearn.sources.left_out import LeftOut
from dictlearn.sources.text_files import find_files, text_documents
from dictlearn.sources.token_cache import cached
from dictlearn.sources.tokenise import SPLITS, left_out_of, tokenised
from dictlearn.types import ModelInfo

log = logging.getLogger(__name__)

WHOLE = "whole"  # the split that is all of the text


@final
class TokenWindows:
    """A stream of tokens cut into windows of P, none lost: window i holds tokens iP to iP + P - 1.

    The stream is whole documents, each after the model's BOS, so that a window may hold the end of
    one and the start of the next. The last window is filled up with pads; a model without any
    special token has nothing to pad with, and there the last tokens that fill no window are left.

    Args:
        stream_T: token ids, int32, at least one.
        context: P.
        special_ids: ids that no dictionary sees.
        pad_id: one of them, or None.
        starts: where in the stream each document begins, ascending from 0; None: it is all one.
    """

    def __init__(
        self,
        stream_T: Tensor,
        context: int,
        special_ids: frozenset[int],
        pad_id: int | None,
        starts: Tensor | None = None,
    ):
        assert pad_id is None or pad_id in special_ids
        self.context = context
        self.special_ids = special_ids
        self._starts = torch.zeros(1, dtype=torch.int64) if starts is None else starts
        assert len(stream_T) == 0 or int(self._starts[0]) == 0, "a stream begins with a document"
        whole = len(stream_T) // context
        self._whole_WP = stream_T[: whole * context].view(whole, context)
        rest = stream_T[whole * context :]
        self._last_P = None
        if len(rest) and pad_id is not None:
            padding = rest.new_full((context - len(rest),), pad_id)
            self._last_P = torch.cat([rest, padding])
        top = max(special_ids, default=0)
        self._special = torch.zeros(top + 2, dtype=torch.bool)  # the last entry: all ids above
        self._special[list(special_ids)] = True

    def __len__(self) -> int:
        return len(self._whole_WP) + (self._last_P is not None)

    def window_batch(self, indices: Tensor | Sequence[int] | range) -> Tensor:
        """Token ids of the windows, int64 [B, P]. IndexError outside 0 to len - 1."""
        listed = list(indices) if isinstance(indices, range) else indices
        indices_B = torch.as_tensor(listed, dtype=torch.int64)
        if len(indices_B) and not 0 <= int(indices_B.min()) <= int(indices_B.max()) < len(self):
            raise IndexError(f"windows {indices_B.tolist()} of {len(self)}")
        is_last_B = indices_B >= len(self._whole_WP)
        tokens_BP = torch.empty((len(indices_B), self.context), dtype=torch.int64)
        tokens_BP[~is_last_B] = self._whole_WP[indices_B[~is_last_B]].long()
        if self._last_P is not None:
            tokens_BP[is_last_B] = self._last_P.long()
        return tokens_BP

    def documents(self, indices: Sequence[int] | range) -> Tensor:
        """Which document of the split each token belongs to, from 0: int64 [B, P].

        Pads count to the last one.
        """
        window_B1 = torch.tensor(list(indices), dtype=torch.int64)[:, None]
        place_BP = window_B1 * self.context + torch.arange(self.context)
        return torch.searchsorted(self._starts, place_BP, right=True) - 1

    def kept(self, indices: Tensor | Sequence[int] | range) -> Tensor:
        """bool [B, P]: True where a token is neither special nor a pad."""
        return ~self._special[self.window_batch(indices).clamp(max=len(self._special) - 1)]


def stdlib_windows(
    lm: LanguageModel,
    split: str,
    context: Count | None = 512,
    held_out: Fraction = 0.1,
    max_tokens: Count | None = None,
) -> TokenWindows:
    """The running interpreter's standard library. See `windows` for the arguments."""
    return windows(
        lm, split, context, held_out, max_tokens, "stdlib", stdlib_files, stdlib_documents
    )


def text_windows(
    lm: LanguageModel,
    split: str,
    paths: str | Sequence[str],
    field: str | None = "text",
    split_on: str | None = None,
    context: Count | None = 512,
    held_out: Fraction = 0.1,
    max_tokens: Count | None = None,
) -> TokenWindows:
    """Local files; see `text_documents` for paths, field and split_on, `windows` for the rest."""
    listed = [paths] if isinstance(paths, str) else list(paths)
    return windows(
        lm,
        split,
        context,
        held_out,
        max_tokens,
        f"text {field} {split_on!r}",
        lambda: find_files(listed),
        lambda left_out: text_documents(listed, field, split_on, left_out),
    )


def hub_windows(
    lm: LanguageModel,
    split: str,
    path: str | None,
    name: str | None = None,
    hub_split: str = "train",
    field: str = "text",
    revision: str | None = None,
    context: Count | None = 512,
    held_out: Fraction = 0.1,
    max_tokens: Count | None = 20_000_000,
) -> TokenWindows:
    """A data set of the hub or a folder in its layout; see `hub_documents`, and `windows`.

    Of a data set on the hub, what was read once is what later runs read, offline too: pin a
    `revision` or change `max_tokens` to read again.
    """
    if path is None:
        raise ValueError("data.path=null: want a data set's hub id (owner/name) or a folder")
    folder = Path(path).expanduser()
    return windows(
        lm,
        split,
        context,
        held_out,
        max_tokens,
        f"hub {path} {name} {hub_split} {field} {revision}",
        lambda: sorted(file for file in folder.rglob("*") if file.is_file()),
        lambda left_out: hub_documents(path, name, hub_split, field, revision, left_out),
    )


def windows(
    lm: LanguageModel,
    split: str,
    context: Count | None,
    held_out: Fraction,
    max_tokens: Count | None,
    name: str,
    files: Callable[[], list[Path]],
    documents: Callable[[LeftOut], Iterable[Document]],
) -> TokenWindows:
    """One split of some documents as windows, tokenised once and kept on disk.

    Args:
        split: train, eval for the documents that are held out, or whole for all of them.
        context: P, tokens per window; None for all that the model reads.
        held_out: the fraction of documents in eval, by hash of their keys; 0 for no eval.
        max_tokens: stop reading documents when train has this many tokens; None reads all.
        name, files: what the tokens depend on: a change of any file's size or time is noticed.
        documents: reads them, called only when the tokens are not on disk; counts what it leaves out.

    Both splits come from one pass over the documents, in which no text counts twice: so no document
    is in both. Where there is only one, the last of its windows are held out. What was left out of
    the text is said, once a process.

    Raises ValueError, in one sentence that names the key.
    """
    if split not in (*SPLITS, WHOLE):
        raise ValueError(f"split={split}: want {', '.join(SPLITS)} or {WHOLE}")
    if lm.tokenizer is None:
        raise ValueError(
            f"model.path={lm.info.name}: has no tokenizer; text data wants one, or another source"
        )
    context = checked(lm.info, context, held_out, max_tokens)
    if split == WHOLE:
        split, held_out = "train", 0.0

    first_id, tokenizer = document_start(lm), lm.tokenizer
    stamps = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files()]
    key = json.dumps([name, tokenizer_hash(tokenizer), first_id, held_out, max_tokens, stamps])
    streams = cached(key, lambda: tokenised(documents, tokenizer, first_id, held_out, max_tokens))
    for sentence in left_out_of(streams).sentences():
        _say_once(key, sentence)
    if held_out > 0 and sum(len(streams[f"{side}_starts"]) for side in SPLITS) == 1:
        streams = _cut_in_two(streams, context, held_out, key)
    # A run that trains first should not learn only at its end that there is nothing to evaluate on.
    for side in SPLITS if held_out > 0 else dict.fromkeys(["train", split]):
        _refuse_too_little(lm, streams, side, context, held_out)
    starts = streams[f"{split}_starts"]
    return TokenWindows(streams[split], context, lm.special_ids, pad_id(lm), starts)


def checked(info: ModelInfo, context: int | None, held_out: float, max_tokens: int | None) -> int:
    """The tokens of a window. ValueError for settings that no text of this model can have."""
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
    """One document on both sides: its last windows are held out, so that no window is on two."""
    (stream,) = (streams[side] for side in SPLITS if len(streams[side]))
    n = -(-len(stream) // context)
    if n == 1:
        raise ValueError(
            f"data: all the text there is, one document of {len(stream):,} tokens, is one window of "
            f"data.context={context}; want more text or a smaller data.context"
        )
    n_held_out = min(max(1, round(held_out * n)), n - 1)
    _say_once(
        key,
        f"data: one document is all the text there is: the last {n_held_out:,} of its {n:,} windows "
        f"are held out (data.split_on='\\n\\n' makes a document of each paragraph)",
    )
    at, start = (n - n_held_out) * context, torch.zeros(1, dtype=torch.int64)
    return {
        "train": stream[:at],
        "train_starts": start,
        "eval": stream[at:],
        "eval_starts": start,
    }


_said: set[tuple[str, str]] = set()


def _say_once(key: str, sentence: str) -> None:
    """A process that reads one text several times says once what is to be known of it."""
    if (key, sentence) not in _said:
        _said.add((key, sentence))
        log.warning(sentence)


def _refuse_too_little(
    lm: LanguageModel, streams: dict[str, Tensor], side: str, context: int, held_out: float
) -> None:
    n_tokens = {split: len(streams[split]) for split in SPLITS}
    if not n_tokens[side]:
        raise _empty(side, held_out, sum(n_tokens.values()))
    if n_tokens[side] < context and pad_id(lm) is None:
        where, what = "data", "the text"
        if held_out > 0:
            where = f"data.held_out={held_out}"
            what = "the held-out text" if side == "eval" else "the text to train on"
        raise ValueError(
            f"{where}: {what} is {n_tokens[side]:,} tokens, less than a window of data.context="
            f"{context}, and {lm.info.name} has no special token to fill it up with; want more text "
            f"or a smaller data.context"
        )


def _empty(side: str, held_out: Fraction, n_tokens: int) -> ValueError:
    if side == "eval" and held_out == 0:
        return ValueError("data.held_out=0: holds out no text to evaluate on; want more than 0")
    if n_tokens == 0:
        return ValueError("data: there is no text to read, not one document with any")
    return ValueError(
        f"data.held_out={held_out}: no document is left for {side}; want more documents (JSON lines "
        f"hold one per line, data.split_on cuts plain text) or another fraction"
    )
