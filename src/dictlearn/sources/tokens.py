"""From documents to windows of tokens, and the builders behind conf/data: stdlib, text, hub."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, final

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dictlearn.lm.language_model import LanguageModel, bos_id
from dictlearn.ranges import Count, Fraction
from dictlearn.sources.documents import (
    Document,
    is_held_out,
    stdlib_documents,
    stdlib_files,
    without_duplicates,
)
from dictlearn.sources.hub_text import hub_documents
from dictlearn.sources.text_files import find_files, text_documents
from dictlearn.sources.token_cache import cached

log = logging.getLogger(__name__)

SPLITS = ("train", "eval")


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

    def valid(self, tokens_BP: Tensor) -> Tensor:
        """bool, shaped as the tokens: True where a token is neither special nor a pad."""
        special = self._special.to(tokens_BP.device)
        return ~special[tokens_BP.clamp(max=len(special) - 1)]


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
    field: str = "text",
    context: Count | None = 512,
    held_out: Fraction = 0.1,
    max_tokens: Count | None = None,
) -> TokenWindows:
    """Local files; see `text_documents` for paths and field, `windows` for the rest."""
    listed = [paths] if isinstance(paths, str) else list(paths)
    return windows(
        lm,
        split,
        context,
        held_out,
        max_tokens,
        f"text {field}",
        lambda: find_files(listed),
        lambda: text_documents(listed, field),
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
        lambda: hub_documents(path, name, hub_split, field, revision),
    )


def windows(
    lm: LanguageModel,
    split: str,
    context: Count | None,
    held_out: Fraction,
    max_tokens: Count | None,
    name: str,
    files: Callable[[], list[Path]],
    documents: Callable[[], Iterable[Document]],
) -> TokenWindows:
    """One split of some documents as windows, tokenised once and kept on disk.

    Args:
        split: train, or eval for the documents that are held out.
        context: P, tokens per window; None for all that the model reads.
        held_out: the fraction of documents in eval, by hash of their keys; 0 for no eval.
        max_tokens: stop reading documents when train has this many tokens; None reads all.
        name, files: what the tokens depend on: a change of any file's size or time is noticed.
        documents: reads them, called only when the tokens are not on disk.

    Both splits come from one pass over the documents, in which no text counts twice: so no document
    is in both.

    Raises ValueError, in one sentence that names the key.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split}: want {' or '.join(SPLITS)}")
    if lm.tokenizer is None:
        raise ValueError(
            f"model.path={lm.info.name}: has no tokenizer; text data wants one, or another source"
        )
    reads = lm.info.context_length or (context or 0)
    context = reads if context is None else context
    if not 2 <= context <= reads:
        raise ValueError(f"data.context={context}: {lm.info.name} reads 2 to {reads} tokens")
    if not 0 <= held_out < 1:
        raise ValueError(f"data.held_out={held_out}: want a fraction from 0 to below 1")
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"data.max_tokens={max_tokens}: want 1 or more, or null for all")

    first_id = document_start(lm)
    tokenizer = lm.tokenizer
    stamps = [[str(p), p.stat().st_size, p.stat().st_mtime_ns] for p in files()]
    depends_on = [name, _fingerprint(tokenizer), first_id, held_out, max_tokens, stamps]
    streams = cached(
        json.dumps(depends_on),
        lambda: _tokenise(documents(), tokenizer, first_id, held_out, max_tokens),
    )
    # A run that trains first should not learn only at its end that there is nothing to evaluate on.
    for side in SPLITS if held_out > 0 else dict.fromkeys(["train", split]):
        if not len(streams[side]):
            raise _empty(side, held_out, sum(len(streams[split]) for split in SPLITS))
    starts = streams[f"{split}_starts"]
    return TokenWindows(streams[split], context, lm.special_ids, _pad_id(lm), starts)


def document_start(lm: LanguageModel) -> int | None:
    """The id before each document: BOS; else what the model was trained to read between documents.

    A tokenizer without a BOS (Qwen) pads with that token; its EOS may be the end of a chat's turn.
    """
    bos = bos_id(lm)
    return bos if bos is not None else _pad_id(lm)


def _pad_id(lm: LanguageModel) -> int | None:
    assert lm.tokenizer is not None
    candidates = (lm.tokenizer.pad_token_id, lm.tokenizer.eos_token_id, bos_id(lm))
    return next((i for i in candidates if isinstance(i, int) and i in lm.special_ids), None)


def _empty(side: str, held_out: Fraction, n_tokens: int) -> ValueError:
    if side == "eval" and held_out == 0:
        return ValueError("data.held_out=0: holds out no text to evaluate on; want more than 0")
    if n_tokens == 0:
        return ValueError("data: there is no text to read, not one document with any")
    return ValueError(
        f"data.held_out={held_out}: no document is left for {side}; want more documents (a .jsonl "
        f"holds one per line) or another fraction"
    )


def _tokenise(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerBase,
    first_id: int | None,
    held_out: Fraction,
    max_tokens: Count | None,
) -> dict[str, Tensor]:
    """Both splits' streams, int32, and where in each its documents start, int64."""
    log.info("data: tokenising; later runs find the tokens on disk")
    start = time.monotonic()
    encode = _encoder(tokenizer)
    before = [] if first_id is None else [first_id]
    streams: dict[str, list[Tensor]] = {
        split: [torch.empty(0, dtype=torch.int32)] for split in SPLITS
    }
    n_train = 0
    for batch in _batches(without_duplicates(documents), 256):
        for document, ids in zip(batch, encode([d.text for d in batch]), strict=True):
            side = "eval" if is_held_out(document.key, held_out) else "train"
            if ids:
                streams[side].append(torch.tensor(before + ids, dtype=torch.int32))
                n_train += len(streams[side][-1]) if side == "train" else 0
        if max_tokens is not None and n_train >= max_tokens:
            break
    tokens = {side: torch.cat(parts) for side, parts in streams.items()}
    if max_tokens is not None:
        tokens["train"] = tokens["train"][:max_tokens]
    for side, parts in streams.items():  # the first part is empty
        ends = torch.tensor([len(part) for part in parts]).cumsum(0)[:-1]
        tokens[f"{side}_starts"] = ends[ends < len(tokens[side])]
    log.info(
        "data: tokenised %s tokens to train on and %s held out, in %.0f s",
        *(f"{len(tokens[side]):,}" for side in SPLITS),
        time.monotonic() - start,
    )
    return tokens


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Texts to ids without specials: a special token's name inside a text is just text."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        options: dict[str, Any] = {"split_special_tokens": True, "verbose": False}
        return lambda texts: tokenizer(texts, add_special_tokens=False, **options)["input_ids"]
    fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())  # our own, to change
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True
    # Without offsets, which cost a third of the time.
    return lambda texts: [e.ids for e in fast.encode_batch_fast(texts, add_special_tokens=False)]


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        written = tokenizer.backend_tokenizer.to_str()
    else:
        written = json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])
    return hashlib.sha256(written.encode()).hexdigest()


def _batches(documents: Iterable[Document], size: int) -> Iterator[list[Document]]:
    documents = iter(documents)
    while batch := list(islice(documents, size)):
        yield batch
