"""The texts of a concept study: prompts with and without the concept behind them, and unrelated text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.interventions.concept.settings import ConceptStudy
from dictlearn.interventions.steering import prompt_tokens
from dictlearn.lm.language_model import LanguageModel, bos_id
from dictlearn.store.split import split_of
from dictlearn.store.windows import StoredWindows

Has = Callable[[str], bool]  # whether generated text has the concept


class Prompt(NamedTuple):
    ids: list[int]  # as the model reads them
    tail: str  # the end of its text that is judged together with what follows


class Texts(NamedTuple):
    """`pos` and `neg` are prompts that text goes on from with the concept and without it."""

    pos: list[list[int]]
    follows: list[list[int]]  # how the text goes on from each of `pos`
    neg: list[list[int]]
    prompts: list[Prompt]  # of other documents
    unrelated_WP: Tensor  # int64: windows without the concept, of those documents too


def gather(lm: LanguageModel, windows: StoredWindows, has: Has, study: ConceptStudy) -> Texts:
    """Divides held-out text: half of the documents for fitting, half for prompts and KL.

    Raises:
        ValueError: it has too few places where a prompt could end, with or without the concept.
    """
    assert lm.tokenizer is not None, "features were found on text"
    pos: list[list[int]] = []
    neg: list[list[int]] = []
    followed: list[list[int]] = []
    prompts: list[Prompt] = []
    start = bos_id(lm)
    first = [] if start is None else [start]
    for fits, ids in _documents(windows, lm.special_ids):
        text = lm.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        for match in re.finditer(study.after, text, re.MULTILINE):
            before = encoded(lm, text[: match.end()])[-study.context :]
            behind = encoded(lm, text[match.end() :][: 16 * study.tokens])[: study.tokens]
            if len(behind) < study.tokens or not before:
                continue
            prompt = [*first, *before]
            if fits:
                shown = has(str(lm.tokenizer.decode(behind)))
                (pos if shown else neg).append(prompt)
                followed += [behind] if shown else []
            else:
                prompts.append(Prompt(prompt, match[0]))
    if study.prompts is not None:
        room = study.tokens
        prompts = [Prompt(prompt_tokens(lm, text, room), text) for text in study.prompts]
    _check(study, pos, neg, prompts)
    return Texts(pos, followed, neg, prompts, _unrelated(lm, windows, has, study, first))


def _check(
    study: ConceptStudy, pos: Sequence[object], neg: Sequence[object], prompts: Sequence[object]
) -> None:
    if min(len(pos), len(neg)) < 8:
        raise ValueError(
            f"study.after={study.after!r}: of its matches in the held-out text {len(pos)} go on with "
            f"the concept and {len(neg)} without; want at least 8 of each, or more text in features/"
        )
    if len(prompts) < study.n_prompts:
        raise ValueError(
            f"study.n_prompts={study.n_prompts}: there are {len(prompts)} prompts; want no more"
        )


def _documents(windows: StoredWindows, special: frozenset[int]) -> Iterator[tuple[bool, list[int]]]:
    """(whether it is for fitting, token ids) of each document's part in each window."""
    for tokens_P, documents_P in zip(windows.tokens, windows.documents, strict=True):
        for document in documents_P.unique().tolist():
            ids = tokens_P[documents_P == document].tolist()
            kept = [token for token in ids if token not in special]
            yield split_of(document) == "explain", kept


def encoded(lm: LanguageModel, text: str) -> list[int]:
    """The ids of a text, without one that starts a document."""
    assert lm.tokenizer is not None
    ids = lm.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return list(ids)  # type: ignore[arg-type]


def _unrelated(
    lm: LanguageModel, windows: StoredWindows, has: Has, study: ConceptStudy, first: list[int]
) -> Tensor:
    rows = []
    for fits, ids in _documents(windows, lm.special_ids):
        text = "" if lm.tokenizer is None else str(lm.tokenizer.decode(ids[: study.kl_tokens]))
        if not fits and len(ids) >= study.kl_tokens and not has(text):
            rows.append([*first, *ids[: study.kl_tokens]])
    if len(rows) < study.kl_windows:
        raise ValueError(
            f"study.kl_windows={study.kl_windows}: {len(rows)} pieces of {study.kl_tokens} held-out "
            "tokens are without the concept; want no more, or shorter ones"
        )
    return torch.tensor(rows)
