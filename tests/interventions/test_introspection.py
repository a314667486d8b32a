"""The introspection protocol finds what is planted, and nothing where there is nothing."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import dictlearn
from dictlearn.interventions import introspection as protocol
from dictlearn.interventions.intervals import interval, t_quantile
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.load import load_model
from dictlearn.lm.sites import blocks

SITE, LAYER = "resid_post.1", 1
WORDS = protocol.CONCEPTS[:6]
SETTINGS = protocol.Introspection(strengths=(1.0, 2.0), placebos=3, batch=64)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load_model("pico")


@pytest.fixture(scope="module")
def vectors(lm: LanguageModel) -> dict[str, Tensor]:
    return protocol.concept_vectors(lm, WORDS, SITE)


@pytest.fixture(scope="module")
def plain(lm: LanguageModel, vectors: dict[str, Tensor]) -> dict[str, Any]:
    return protocol.study(lm, vectors, SITE, SETTINGS)


Noticed = Callable[
    [str | None, Tensor], Tensor
]  # (the prompt's concept, projections [B, C]) -> [B]


@contextmanager
def planted(
    lm: LanguageModel, vectors: dict[str, Tensor], noticed: Noticed, everywhere: bool
) -> Iterator[None]:
    """A model whose head raises yes when it finds a concept's direction behind the site.

    It does so on introspective questions alone, or on every question. `noticed` says what it finds.
    """
    units_CD = torch.nn.functional.normalize(torch.stack(list(vectors.values())), dim=1)
    about: dict[tuple[int, ...], str | None] = {}
    for question in protocol.ASKED:
        about[tuple(protocol.prompt_ids(lm, question + protocol.ENDING))] = None
    for name in vectors:
        question = protocol.NAMED.format(concept=name) + protocol.ENDING
        about[tuple(protocol.prompt_ids(lm, question))] = name
    seen: dict[str, Tensor] = {}

    def read(block: object, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        seen["projections"] = hidden[:, -1] @ units_CD.T

    def speak(model: object, args: object, kwargs: dict[str, Any], output: Any) -> None:
        key = tuple(kwargs["input_ids"][0].tolist())
        if key in about or everywhere:
            rise_B = noticed(about.get(key), seen["projections"])
            output.logits[:, -1, protocol.answer_ids(lm)["yes"]] += rise_B[:, None]

    handles = [
        blocks(lm.model)[1][LAYER + 1].register_forward_pre_hook(read, with_kwargs=True),
        lm.model.register_forward_hook(speak, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def strong(projections_BC: Tensor) -> Tensor:
    """3 nats for a projection that text doesn't reach and an injection at strength 1 does."""
    return 3.0 * (projections_BC > 25).float()


def test_a_model_without_introspection_shows_nothing_and_it_is_said(plain: dict[str, Any]):
    verdict = plain["verdict"]
    assert verdict["found"] == [] and verdict["text"].startswith("Nothing found: at no strength")
    for contrast in plain["contrasts"].values():
        assert all(row["low"] < 0 for row in contrast)


def test_a_planted_model_is_found_and_its_placebo_is_flat(lm, vectors, plain):
    def noticed(name: str | None, projections_BC: Tensor) -> Tensor:
        found_BC = strong(projections_BC)
        return found_BC.amax(1) if name is None else found_BC[:, list(vectors).index(name)]

    with planted(lm, vectors, noticed, everywhere=False):
        record = protocol.study(lm, vectors, SITE, SETTINGS)
    assert record["verdict"]["found"] == record["verdict"]["named"] == [1.0, 2.0]
    assert record["verdict"]["text"].startswith("Found at strength 1, 2")
    for name, rise in {"over placebo": 3, "over unrelated": 3, "over shuffled": 3}.items():
        for row, before in zip(record["contrasts"][name], plain["contrasts"][name], strict=True):
            assert row["mean"] - before["mean"] == pytest.approx(rise, abs=0.3)
    for curve in ("introspection, placebo", "unrelated, placebo", "unrelated, concept"):
        assert record["curves"][curve] == plain["curves"][curve], "nothing was planted there"
    assert min(record["says_yes"]["introspection"]["concept"]) > 0.9


def test_yes_to_every_question_is_not_introspection(lm, vectors):
    with planted(lm, vectors, lambda _, x_BC: strong(x_BC).amax(1), everywhere=True):
        verdict = protocol.study(lm, vectors, SITE, SETTINGS)["verdict"]
    assert verdict["raised"] == [1.0, 2.0] and verdict["found"] == []
    assert "to unrelated questions as well" in verdict["text"]


def test_a_shift_is_that_of_a_push_with_the_vector(lm, vectors, plain):
    model, answers = dictlearn.open_model("pico"), protocol.answer_ids(lm)
    name, i = WORDS[2], 2

    def margin(*pushes: dictlearn.Push) -> float:
        last_V = model.run(ids, [], list(pushes)).logits[0, -1]
        return float(last_V[answers["yes"]].logsumexp(0) - last_V[answers["no"]].logsumexp(0))

    shifts = []
    for question in protocol.ASKED:
        ids = torch.tensor(protocol.prompt_ids(lm, question + protocol.ENDING))
        assert plain["clean"]["introspection"][question] == pytest.approx(margin(), abs=1e-4)
        shifts.append(margin(dictlearn.Push(SITE, vectors[name], 2.0)) - margin())
    mean = sum(shifts) / len(shifts)
    assert plain["shifts"]["introspection, concept"][1][i] == pytest.approx(mean, abs=1e-4)
    question = protocol.NAMED.format(concept=name) + protocol.ENDING
    ids = torch.tensor(protocol.prompt_ids(lm, question))
    other = list(vectors)[i - 1]
    shift = margin(dictlearn.Push(SITE, vectors[other], 1.0)) - margin()
    assert plain["shifts"]["named, shuffled"][0][i - 1] == pytest.approx(shift, abs=1e-4)


def test_placebos_are_as_long_as_the_vectors_and_the_same_for_a_seed(lm, vectors):
    runs = [
        protocol._Runs(lm, SITE, vectors, protocol.Introspection(placebos=2, seed=seed))
        for seed in (0, 0, 1)
    ]
    norms_C = torch.stack(list(vectors.values())).norm(dim=1)
    assert torch.allclose(runs[0].placebos_RCD.norm(dim=2), norms_C.expand(2, -1))
    assert torch.equal(runs[0].placebos_RCD, runs[1].placebos_RCD)
    assert not torch.equal(runs[0].placebos_RCD, runs[2].placebos_RCD)
    assert torch.stack(list(vectors.values())).sum(0).abs().max() < 1e-3 * norms_C.max()


def test_intervals_are_students():
    for (p, freedom), value in {
        (0.975, 4): 2.776,
        (0.975, 9): 2.262,
        (0.995, 9): 3.250,
        (0.95, 5): 2.015,
        (0.995, 4): 4.604,
    }.items():
        assert t_quantile(p, freedom) == pytest.approx(value, rel=0.01)
    samples = torch.randn(4000, 6, generator=torch.Generator().manual_seed(0))
    inside = [low < 0 < high for _, low, high in (interval(row) for row in samples.tolist())]
    assert sum(inside) / 4000 == pytest.approx(0.95, abs=0.012)


def test_a_chat_model_gets_the_question_as_a_users_turn(lm: LanguageModel):
    tokenizer = copy.deepcopy(lm.tokenizer)
    assert tokenizer is not None
    tokenizer.chat_template = "{% for m in messages %}<{{m.role}}>{{m.content}}{% endfor %}<answer>"
    chat = replace(lm, tokenizer=tokenizer)
    assert (
        tokenizer.decode(protocol.prompt_ids(chat, "Is ice cold?")) == "<user>Is ice cold?<answer>"
    )
    plain = tokenizer.decode(protocol.prompt_ids(lm, "Is ice cold?"), skip_special_tokens=True)
    assert plain == "Question: Is ice cold?\nAnswer:"


def test_yes_and_no_are_told_apart_by_their_first_tokens(lm: LanguageModel):
    ids, tokenizer = protocol.answer_ids(lm), lm.tokenizer
    assert tokenizer is not None
    for side, texts in protocol.ANSWERS.items():
        first = {tokenizer(text, add_special_tokens=False)["input_ids"][0] for text in texts}  # type: ignore[index]
        assert set(ids[side]) <= first
    assert not set(ids["yes"]) & set(ids["no"])


def test_what_cannot_be_studied_is_refused(lm, vectors):
    for concepts, message in {
        ("a", "b", "c", "d"): "concepts: 4; intervals are over concepts, want 5",
        ("a", "a", "b", "c", "d"): "one is there twice",
    }.items():
        with pytest.raises(ValueError, match=message):
            protocol.concept_vectors(lm, concepts, SITE)
    wrong: tuple[tuple[dict[str, Any], str], ...] = (
        ({"strengths": ()}, "strengths"),
        ({"strengths": (-1.0,)}, "want numbers above 0"),
        ({"placebos": 0}, "placebos=0"),
    )
    for keys, message in wrong:
        with pytest.raises(ValueError, match=message):
            protocol.Introspection(**keys)
