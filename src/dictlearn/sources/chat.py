"""Windows of conversations in a chat model's format: the builder of data=chat."""

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
from dictlearn.sources.left_out import MIXED, MOST_ROLES, REFUSED, SILENT, LeftOut
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
    """Windows of single conversations, in which only tokens of some roles' turns are kept.

    Args:
        paths: files of JSON lines or parquet, instead of `path`.
        path, name, hub_split, revision: a data set, see `hub_documents`.
        field, prompt, response, tools: see `ChatColumn`; `prompt` and `response` replace
            `field`.
        roles: the roles whose turns a dictionary reads. The model reads the whole conversation.
        template: a file of a Jinja template, the template itself, or the name of one that the
            tokenizer has; None for the tokenizer's own.
        template_values: values of the template's own variables.
        template_tokens: whether the template's tokens around a kept turn are kept too.
        long, context, held_out, max_tokens: see `windows`; max_tokens counts kept tokens.

    Raises ValueError, in one sentence that names the key.
    """
    listed = [paths] if isinstance(paths, str) else list(paths)
    kept_roles = (roles,) if isinstance(roles, str) else tuple(roles)
    _check(lm, listed, path, prompt, response, kept_roles, template_tokens)
    assert lm.tokenizer is not None
    chat_template = Template(lm.tokenizer, _source(lm.tokenizer, template), template_values)
    keep = template_tokens == "keep"
    messages = field if prompt is None else None
    fields = (messages, prompt, response, tools)
    settings = [path, name, hub_split, revision, fields, kept_roles, template_tokens]
    settings += [_hash(lm.tokenizer, chat_template), template_values]
    corpus = Corpus(
        f"data.paths={shown(listed)}" if path is None else f"data.path={path}",
        f"chat {json.dumps(settings, default=str)}",
        (lambda: find_files(listed)) if path is None else (lambda: files_below(path)),
        lambda left_out: _documents(fields, listed, path, name, hub_split, revision, left_out),
        ChatEncoder(lm.tokenizer, chat_template, kept_roles, keep),
        apart=True,
        unseen_ids=_start_ids(lm) if keep else None,
        check=lambda left_out: _check_roles(kept_roles, left_out.roles()),
    )
    result = windows(lm, split, context, held_out, max_tokens, long, corpus)
    _report(result, corpus, split)
    return result


def _documents(
    fields: tuple[str | None, str | None, str | None, str | None],
    paths: Sequence[str],
    path: str | None,
    name: str | None,
    hub_split: str,
    revision: str | None,
    left_out: LeftOut,
) -> Iterable[Document]:
    column = ChatColumn(*fields, left_out)
    if path is None:
        return text_documents(paths, column, None, left_out)
    return hub_documents(path, name, hub_split, column, revision, left_out)


def _check_roles(kept: Sequence[str], there: Sequence[str]) -> None:
    """Warns of roles that occur nowhere. Raises ValueError if that is all of them."""
    absent = [role for role in kept if role not in there]
    if not absent or not there or len(there) == MOST_ROLES:
        return
    sentence = (
        f"data.roles={shown(list(kept))}: no turn is of {' or '.join(map(shown, absent))}; the roles "
        f"here are {', '.join(map(shown, there))}"
    )
    if len(absent) == len(kept):
        raise ValueError(sentence)
    say_once("roles", sentence)


def _report(result: TokenWindows, corpus: Corpus, split: str) -> None:
    """Logs the shares of kept tokens and padding. Raises ValueError if there are no windows."""
    if len(result) == 0:
        raise ValueError(
            f"{corpus.named}: no window of data.context={result.context} tokens has a token to keep; "
            f"want a larger data.context or other data.roles"
        )
    n_tokens = len(result) * result.context
    say_once(
        f"{corpus.name} {split}",
        f"data: {split}: {len(result):,} windows of single conversations: "
        f"{result.n_kept / n_tokens:.0%} of the tokens are kept, "
        f"{1 - result.n_read / n_tokens:.0%} are padding",
    )


def _start_ids(lm: LanguageModel) -> frozenset[int]:
    """The id of BOS, where activations are much larger than elsewhere."""
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
            f"model.path={lm.info.name}: has no special token, which data=chat needs to pad windows"
        )
    if template_tokens not in ("drop", "keep"):
        raise ValueError(f"data.template_tokens={template_tokens}: want drop or keep")
    if not isinstance(lm.tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"model.path={lm.info.name}: data=chat needs the offsets of tokens in the text, which only "
            f"a fast tokenizer (tokenizer.json) has"
        )


def _source(tokenizer: PreTrainedTokenizerBase, template: str | None) -> str | None:
    """The Jinja source that `data.template` names. Raises ValueError if there is none."""
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
    """A hash of everything that a conversation's text depends on."""
    sources = [template.source(), template.source([]), tokenizer.special_tokens_map]
    return hashlib.sha256(json.dumps(sources, default=str).encode()).hexdigest()


@final
class ChatEncoder:
    """Encodes conversations as the tokenizer does, and marks the tokens of some roles' turns.

    A token at the border of a turn belongs to the turn if it has a character of it that is not white
    space; the space before a word may be the template's. A conversation is left out and counted if the
    template refuses it, if its turns can't be told apart, or if it has no turn of the roles.
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
        self._logged: set[str] = set()

    def __call__(self, texts: list[str], left_out: LeftOut) -> list[Encoded | None]:
        rendered = [self._rendered(from_text(text), left_out) for text in texts]
        encoded = iter(self._encode([text for text, spans in rendered if spans]))
        documents: list[Encoded | None] = []
        for text, spans in rendered:
            if not spans:
                documents.append(None)
                continue
            ids, offsets = next(encoded)
            chosen = _inside(torch.tensor(offsets).view(-1, 2), text, spans)
            documents.append(Encoded(ids, chosen.tolist()) if chosen.any() else None)
            left_out[SILENT] += documents[-1] is None
        return documents

    def _rendered(self, conversation: Conversation, left_out: LeftOut) -> tuple[str, list[Span]]:
        """The text and the turns to keep; none if the conversation is left out."""
        text, spans = "", []
        left_out.count_roles(str(message["role"]) for message in conversation.messages)
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
                others = ", ".join(sorted({str(m["role"]) for m in conversation.messages}))
                self._say_once(f"data: a conversation has only turns of {others}")
        return text, spans

    def _say_once(self, sentence: str) -> None:
        """Warns of the first three reasons; the counts follow at the end."""
        if sentence not in self._logged and len(self._logged) < 3:
            self._logged.add(sentence)
            log.warning(" ".join(sentence.split()))


def _with_offsets(
    tokenizer: PreTrainedTokenizerBase,
) -> Callable[[list[str]], Iterable[tuple[list[int], list[tuple[int, int]]]]]:
    """A function that encodes texts as ids and the offsets of each token's characters."""
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules["post_processor"] = (
        None  # it adds no tokens here, and some remove spaces from the offsets
    )
    fast = Tokenizer.from_str(json.dumps(rules))
    fast.no_truncation()
    fast.no_padding()

    def encode(texts: list[str]) -> Iterable[tuple[list[int], list[tuple[int, int]]]]:
        return ((e.ids, e.offsets) for e in fast.encode_batch(texts, add_special_tokens=False))

    return encode


def _inside(offsets_N2: Tensor, text: str, spans: Sequence[Span]) -> Tensor:
    """bool [N]: whether a token is inside a span, or has a character of one that is not a space."""
    start_N, stop_N = offsets_N2.unbind(1)
    inside_N = torch.zeros(len(start_N), dtype=torch.bool)
    for start, stop in spans:
        within_N = (start_N >= start) & (stop_N <= stop) & (start_N < stop_N)
        content = text[start:stop].strip()
        first = start + text[start:stop].find(content)
        overlaps_N = (start_N < first + len(content)) & (stop_N > first)
        inside_N |= within_N | overlaps_N if content else within_N
    return inside_N
