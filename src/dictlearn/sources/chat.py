"""Windows of conversations, as a chat model reads them: the builder of data=chat."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, final

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dictlearn.lm.language_model import LanguageModel, bos_id, pad_id
from dictlearn.ranges import Count, Fraction
from dictlearn.schema import shown
from dictlearn.sources.conversations import ChatColumn, Conversation, from_text
from dictlearn.sources.documents import Document
from dictlearn.sources.hub_text import hub_documents
from dictlearn.sources.left_out import MIXED, REFUSED, SILENT, LeftOut
from dictlearn.sources.text_files import find_files, text_documents
from dictlearn.sources.tokenise import Encoded
from dictlearn.sources.tokens import Corpus, TokenWindows, files_below, say_once, windows
from dictlearn.sources.turns import NotApart, Refused, Span, Template, turns

log = logging.getLogger(__name__)

ASSISTANT = ("assistant",)


def chat_windows(
    lm: LanguageModel,
    split: str,
    paths: str | Sequence[str] = (),
    path: str | None = None,
    name: str | None = None,
    hub_split: str = "train",
    revision: str | None = None,
    field: str = "messages",
    prompt: str | None = None,
    response: str | None = None,
    tools: str | None = "tools",
    roles: str | Sequence[str] = ASSISTANT,
    template: str | None = None,
    template_values: Mapping[str, Any] | None = None,
    template_tokens: Literal["drop", "keep"] = "drop",
    long: Literal["split", "cut"] = "split",
    context: Count | None = 512,
    held_out: Fraction = 0.1,
    max_tokens: Count | None = 20_000_000,
) -> TokenWindows:
    """Conversations in windows of their own, of which the tokens of some roles' turns are kept.

    Args:
        paths: files of JSON lines or parquet; or else
        path, name, hub_split, revision: a data set, see `hub_documents`.
        field, prompt, response, tools: see `ChatColumn`; `prompt` and `response` take the place of
            `field`.
        roles: whose turns a dictionary sees. The model reads all of the conversation.
        template: a file of a Jinja template, the template itself, or the name of one that the
            tokenizer has; None for the tokenizer's own.
        template_values: what the template's own variables are.
        template_tokens: whether tokens that the template puts around a kept turn are kept too.
        long, context, held_out, max_tokens: see `windows`; max_tokens counts those that are kept.

    Raises ValueError, in one sentence that names the key.
    """
    listed = [paths] if isinstance(paths, str) else list(paths)
    wanted = (roles,) if isinstance(roles, str) else tuple(roles)
    _check(lm, listed, path, prompt, response, wanted, template_tokens)
    assert lm.tokenizer is not None
    source = _source(lm.tokenizer, template)
    filled = Template(lm.tokenizer, source, template_values)
    encode = ChatEncoder(lm.tokenizer, filled, wanted, keep_template=template_tokens == "keep")
    columns = (None, prompt, response) if prompt is not None else (field, None, None)

    def documents(left_out: LeftOut) -> Iterable[Document]:
        column = ChatColumn(*columns, tools, left_out)
        if path is None:
            return text_documents(listed, column, None, left_out)
        return hub_documents(path, name, hub_split, column, revision, left_out)

    described = [path, name, hub_split, revision, columns, tools, wanted, template_tokens]
    described += [_hash(lm.tokenizer, filled), template_values]
    corpus = Corpus(
        f"data.paths={shown(listed)}" if path is None else f"data.path={path}",
        f"chat {json.dumps(described, default=str)}",
        (lambda: find_files(listed)) if path is None else (lambda: files_below(path)),
        documents,
        encode,
        apart=True,
        unseen_ids=_start_ids(lm) if template_tokens == "keep" else None,
    )
    found = windows(lm, split, context, held_out, max_tokens, long, corpus)
    if len(found) == 0:
        raise ValueError(
            f"{corpus.named}: no window of data.context={found.context} tokens holds any that is kept; "
            f"want a larger data.context or other data.roles"
        )
    n_tokens = len(found) * found.context
    say_once(
        f"{corpus.name} {split}",
        f"data: {split}: {len(found):,} windows of conversations, each in windows of its own: "
        f"{found.n_kept / n_tokens:.0%} of the tokens are kept, "
        f"{1 - found.n_read / n_tokens:.0%} are padding",
    )
    return found


def _start_ids(lm: LanguageModel) -> frozenset[int]:
    """BOS, on which activations are of another size than anywhere else."""
    bos = bos_id(lm)
    return frozenset() if bos is None else frozenset({bos})


def _check(
    lm: LanguageModel,
    paths: Sequence[str],
    path: str | None,
    prompt: str | None,
    response: str | None,
    roles: Sequence[str],
    template_tokens: str,
) -> None:
    if bool(paths) == (path is not None):
        both = "both were given" if paths else "no conversations were named"
        raise ValueError(
            f"data=chat: {both}; want data.paths=<files or globs of JSON lines or parquet>, or "
            f"data.path=<a data set's hub id or folder>"
        )
    if (prompt is None) != (response is None):
        given, missing = ("prompt", "response") if response is None else ("response", "prompt")
        value = prompt if response is None else response
        raise ValueError(
            f"data.{given}={value}: want data.{missing} as well, or data.field for a column of messages"
        )
    if not roles:
        raise ValueError("data.roles=[]: want the roles whose turns are kept, such as [assistant]")
    if pad_id(lm) is None:
        raise ValueError(
            f"model.path={lm.info.name}: has no special token, and conversations are read in windows of "
            f"their own, which are filled up with one"
        )
    if template_tokens not in ("drop", "keep"):
        raise ValueError(f"data.template_tokens={template_tokens}: want drop or keep")
    if not isinstance(lm.tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"model.path={lm.info.name}: data=chat wants a tokenizer that says where its tokens stand "
            f"in the text, a fast one (tokenizer.json)"
        )


def _source(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str | None:
    """The Jinja source that `data.template` names. ValueError if there is none."""
    own = tokenizer.chat_template
    if template is None:
        if own is None or (isinstance(own, dict) and "default" not in own):
            has = f"has {', '.join(sorted(own))}" if own else "has no chat template"
            raise ValueError(
                f"data.template=null: the tokenizer {has}; want data.template=<a file of Jinja, or the "
                f"template itself>"
            )
        return None
    if "{{" in template or "{%" in template or (isinstance(own, dict) and template in own):
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ValueError(
            f"data.template={template}: {why}; want a file of a Jinja template, or the template itself"
        ) from error


def _hash(tokenizer: PreTrainedTokenizerBase, template: Template) -> str:
    """A hash of all that decides a conversation's text."""
    sources = [template.source(), template.source([]), tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(sources, default=str).encode()).hexdigest()


@final
class ChatEncoder:
    """Encodes conversations as the tokenizer does, and marks the tokens of some roles' turns.

    A token that a turn shares with what stands around it is the turn's if it holds more of it than white
    space: the space before a word, say, may be the template's. A conversation that the template refuses,
    whose turns can't be told apart, or that has no turn of the roles is left out and counted.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: Template,
        roles: Sequence[str],
        keep_template: bool = False,
    ):
        self._encode = _with_offsets(tokenizer)
        self._template, self._roles, self._around = template, roles, keep_template
        self._said: set[str] = set()

    def __call__(self, texts: list[str], left_out: LeftOut) -> list[Encoded | None]:
        rendered = [self._rendered(from_text(text), left_out) for text in texts]
        encoded = iter(self._encode([text for text, spans in rendered if spans]))
        found: list[Encoded | None] = []
        for text, spans in rendered:
            if not spans:
                found.append(None)
                continue
            ids, offsets = next(encoded)
            chosen = _inside(torch.tensor(offsets).view(-1, 2), text, spans)
            found.append(Encoded(ids, chosen.tolist()) if chosen.any() else None)
            left_out[SILENT] += found[-1] is None
        return found

    def _rendered(self, conversation: Conversation, left_out: LeftOut) -> tuple[str, list[Span]]:
        """The text and the turns to keep; none if the conversation is left out."""
        text, spans = "", []
        try:
            text, spans = turns(self._template, conversation, self._roles, self._around)
        except Refused as error:
            left_out[REFUSED] += 1
            self._say_once(f"data: the template refuses a conversation: {error}")
        except NotApart:
            left_out[MIXED] += 1
        else:
            left_out[SILENT] += not spans
            if not spans:
                theirs = ", ".join(sorted({str(m["role"]) for m in conversation.messages}))
                self._say_once(f"data: a conversation has turns of {theirs} alone")
        return text, spans

    def _say_once(self, sentence: str) -> None:
        """The first few reasons: the counts are said at the end."""
        if sentence not in self._said and len(self._said) < 3:
            self._said.add(sentence)
            log.warning(" ".join(sentence.split()))


def _with_offsets(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[list[str]], Iterable[tuple[list[int], list[tuple[int, int]]]]]:
    """Encodes texts with the characters that each token stands for."""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules["post_processor"] = None  # it adds nothing here, and some take spaces off the offsets
    fast = Tokenizer.from_str(json.dumps(rules))
    fast.no_truncation()
    fast.no_padding()

    def encode(texts: list[str]) -> Iterable[tuple[list[int], list[tuple[int, int]]]]:
        return ((e.ids, e.offsets) for e in fast.encode_batch(texts, add_special_tokens=False))

    return encode


def _inside(offsets_N2: Tensor, text: str, spans: Sequence[Span]) -> Tensor:
    """bool [N]: whether a token lies in one of the spans, or has a character of it that is no space."""
    start_N, stop_N = offsets_N2.unbind(1)
    inside_N = torch.zeros(len(start_N), dtype=torch.bool)
    for start, stop in spans:
        within_N = (start_N >= start) & (stop_N <= stop) & (start_N < stop_N)
        said = text[start:stop].strip()
        first = start + text[start:stop].find(said)
        holds_N = (start_N < first + len(said)) & (stop_N > first)
        inside_N |= within_N | holds_N if said else within_N
    return inside_N
