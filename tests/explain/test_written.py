"""Descriptions by a model behind HTTP: who sees which documents, and what a score is worth."""

from __future__ import annotations

import itertools
import json
import re

import numpy as np
import pytest

from dictlearn.explain.contexts import Contexts, part_of
from dictlearn.explain.openai import OpenAI
from dictlearn.explain.prompt import Prompt
from dictlearn.explain.protocol import Material
from dictlearn.explain.sample import Firings, Sample
from dictlearn.explain.scorers import Detection, Fuzzing, Simulation
from dictlearn.explain.written import Written
from dictlearn.store.split import split_of
from tests.explain.server import Reply, completion, serving

WORDS = ["", *(f" w{i}" for i in range(1, 40))]
N_DOCUMENTS, LENGTH, FIRING = 40, 50, 7  # feature 0 fires on " w7"; feature 1 on " w9"
LIST = Prompt("Answer with a list.", "Description: $description\n$examples\n$n")
TOKENS = Prompt("A number a token.", "Description: $description\nTOKENS\n$tokens")
ASK = Prompt("Say it.", "$strongest\n===\n$by_interval\n===\n$near_misses\n$promoted\n$suppressed")


def material(tmp_path, others: tuple[int, int] | None = None, **changed) -> Material:
    """`others`: the words on which the features of the random dictionary fire; None: the same."""
    random = np.random.default_rng(0)
    tokens = random.integers(1, 40, (N_DOCUMENTS, LENGTH))
    tokens[:, -1] = 20 + np.arange(N_DOCUMENTS) % 20
    kept = np.ones(tokens.shape, bool)
    documents = np.broadcast_to(np.arange(N_DOCUMENTS)[:, None], tokens.shape).copy()
    starts = np.zeros(tokens.shape, bool)
    starts[:, 0] = True
    sample = Sample(tokens, kept, starts, documents, tuple(range(N_DOCUMENTS)))

    def firings(*words: int) -> Firings:
        fired = [np.flatnonzero(tokens.ravel() == word) for word in words]
        return Firings(
            2,
            np.array([0, len(fired[0]), len(fired[0]) + len(fired[1])]),
            np.concatenate(fired).astype(np.int32),
            random.uniform(1, 5, sum(map(len, fired))).astype(np.float32),
        )

    own = firings(FIRING, 9)
    untrained = own if others is None else firings(*others)
    options = {"threshold": 0.8, "precision": 0.0, "at_least": 5, "baseline_features": 2}
    return Material(sample, own, untrained, WORDS, folder=tmp_path, **{**options, **changed})


def reader(body) -> str:
    """Plays a model that names the marked word and reads descriptions word for word."""
    question = body["messages"][-1]["content"]
    said = re.match(r"Description: fires on (\w+)", question)
    if said is None:
        marked = re.findall(r"<< (\w+)>>", question)
        return f"Thinking.\nDESCRIPTION: fires on {max(set(marked), key=marked.count)}"
    if "\nTOKENS\n" in question:
        tokens = question.split("\nTOKENS\n")[1].split("\n")
        return json.dumps([10 * (json.loads(t) == f" {said[1]}") for t in tokens])
    texts = re.split(r"Example \d+:\n", question)[1:]
    marks = "<<" in question
    wanted = f"<< {said[1]}>>" if marks else f" {said[1]} "
    return json.dumps([int(wanted in t.replace("\n", " ") + " ") for t in texts])


def scorers(*names):
    every = {"detection": Detection(LIST, 20), "fuzzing": Fuzzing(LIST, 20)}
    every["simulation"] = Simulation(TOKENS, 6)
    return {name: every[name] for name in names}


def explained(
    tmp_path,
    answer=reader,
    names=("detection", "fuzzing"),
    faults=(),
    kept=None,
    features=((0, 0), (0, 1)),
    others=None,
    **options,
):
    """What is explained, and the server that was asked. `kept` gets what is found as it comes."""
    with serving(answer, faults) as server:
        client = OpenAI(server.url, "m", first_wait=0.01, temperature=0.5)
        written = Written("openai", client, ASK, scorers(*names), 4, 100, **options)
        keep = ([] if kept is None else kept).append
        one = material(tmp_path, others)
        return written.explain(one, features, lambda *_: None, keep), server


def test_a_right_description_scores_high_and_a_swapped_one_does_not(tmp_path):
    found, _ = explained(tmp_path, names=("detection", "fuzzing", "simulation"))
    first, second = found.explanations
    assert first.text == "fires on w7" and second.text == "fires on w9"
    assert first.reliable and first.scores["balanced_accuracy"] > 0.9
    assert first.scores["fuzzing"] == 1 and first.scores["simulation"] > 0.8
    assert np.mean(found.baselines["shuffled"]) == pytest.approx(0.5, abs=0.2)
    assert len(found.baselines["random_dictionary"]) == 2
    assert found.figures["asked"]["malformed"] == 0


def test_the_explainer_sees_one_half_and_scorers_the_other(tmp_path, monkeypatch):
    """Every text sent is looked for in the documents, word for word; near misses are of the other
    feature's token."""
    monkeypatch.setattr(Material, "neighbours", lambda _, source, index: [(source, 1 - index)] * 9)
    for best_of in (1, 2):
        _, server = explained(tmp_path / str(best_of), best_of=best_of)
        text = ["".join(WORDS[i] for i in row) for row in material(tmp_path).sample.tokens_WP]
        for body in server.bodies:
            marked = body["messages"][-1]["content"]
            question = marked.replace("<<", "").replace(">>", "")
            explaining = not question.startswith("Description")
            pieces = re.split(r"\n---\n|\n===\n|\n\nExample \d+:\n|Example 1:\n|\n", question)
            texts = [p for p in pieces if p.startswith(" w") and p.count(" w") > 8]
            assert texts
            if explaining:
                own, other = (" w7", " w9") if "<< w7>>" in marked else (" w9", " w7")
                near = question.split("\n===\n")[2].split("\n---\n")[:3]
                assert all(f"{other} " in f"{one} " and f"{own} " not in one for one in near)
            for one in texts:
                (document,) = [d for d, whole in enumerate(text) if one in whole]
                if explaining:
                    assert split_of(document) == "explain"
                    assert best_of == 1 or part_of(document) == "shown"
                elif split_of(document) == "explain":
                    assert best_of == 2 and part_of(document) == "chosen"


def test_the_best_of_several_is_taken(tmp_path):
    answers = iter(["DESCRIPTION: fires on w3", "DESCRIPTION: fires on w7"] * 50)

    def answer(body):
        asked = body["messages"][-1]["content"].startswith("Description")
        return reader(body) if asked else next(answers)

    with serving(answer) as server:
        client = OpenAI(server.url, "m", first_wait=0.01, temperature=0.5)
        written = Written("openai", client, ASK, scorers("detection"), 1, 100, best_of=2)
        found = written.explain(material(tmp_path), [(0, 0)], lambda *_: None, lambda _: None)
    assert found.explanations[0].text == "fires on w7"


def test_malformed_answers_are_counted_and_are_no_score(tmp_path):
    def answer(body):
        asked = body["messages"][-1]["content"].startswith("Description")
        return "[1, 0" if asked else reader(body)

    found, _ = explained(tmp_path, answer)
    assert all("balanced_accuracy" not in e.scores for e in found.explanations)
    assert not any(e.reliable for e in found.explanations)
    assert found.figures["unscored"] == 2 and found.figures["asked"]["malformed"] > 10


def test_an_empty_description_is_none(tmp_path):
    def answer(body):
        return "DESCRIPTION:  \n" if "<< w9>>" in body["messages"][-1]["content"] else reader(body)

    kept = []
    found, _ = explained(tmp_path, answer, kept=kept)
    assert [e.text for e in found.explanations] == ["fires on w7", ""]
    assert not found.explanations[1].scores and not found.explanations[1].reliable
    assert [e.text for e in kept] == ["fires on w7"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda body: "<think>hm, DESCRIPTION: no</think>", "no answer holds a description"),
        (lambda body: Reply(b"no", 500), r"nothing was answered \(4 prompts: 0 .*4 failed.*500"),
        (lambda body: Reply(b"too long", 400), "nothing was answered .*too long"),
    ],
    ids=["thoughts alone", "a dead server", "every prompt refused"],
)
def test_a_run_with_nothing_to_show_says_so(tmp_path, answer, message):
    kept = []
    with pytest.raises(OSError, match=message):
        explained(tmp_path, answer, kept=kept)
    assert [e.text for e in kept] == (["", ""] if "no answer holds" in message else [])


def test_what_was_found_before_the_server_died_is_kept(tmp_path):
    """Each is handed on with its scores when it is found, before the baselines."""
    kept, seen = [], []

    def answer(body):
        seen.append(body)
        return reader(body) if len(seen) <= 5 else Reply(b"gone", 401)

    with pytest.raises(ValueError, match="401"):
        explained(tmp_path, answer, ["detection"], kept=kept, features=[(0, 0)], others=(11, 13))
    assert [e.text for e in kept] == ["fires on w7"] and kept[0].reliable
    assert not kept[0].baselines


def test_a_bad_description_is_unreliable_and_shows_where_it_fails(tmp_path):
    def answer(body):
        asked = body["messages"][-1]["content"].startswith("Description")
        return reader(body) if asked else "DESCRIPTION: fires on w3"

    found, _ = explained(tmp_path, answer)
    one = found.explanations[0]
    assert not one.reliable and one.failing
    assert all(failure.fired != failure.predicted for failure in one.failing)


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    with pytest.raises(OSError, match="no answer"):
        explained(tmp_path, faults=[""] * 5 + ["500"] * 500)
    _, server = explained(tmp_path)
    _, again = explained(tmp_path)
    asked = [json.dumps(body) for body in server.bodies]
    assert len(asked) == len(set(asked)) and not again.bodies


@pytest.mark.parametrize(
    ("names", "options"),
    [(("detection", "fuzzing", "simulation"), {}), (("detection",), {"best_of": 2})],
    ids=str,
)
def test_an_estimate_is_what_will_be_sent_and_asks_nobody(tmp_path, names, options):
    """Scoring and baselines too, within a fifth; what the cache can answer costs nothing."""
    numbered = itertools.count()

    def answer(body):  # no two descriptions of one feature are the same
        asked = body["messages"][-1]["content"].startswith("Description")
        text = f"DESCRIPTION: fires on a, as I see it in all of the examples {next(numbered)}"
        said = reader(body) if asked else text
        count = sum(len(message["content"]) for message in body["messages"]) / 3.5
        usage = {"prompt_tokens": round(count), "completion_tokens": len(said) // 2}
        return Reply(completion(said, usage))

    def estimated():
        client = OpenAI("http://127.0.0.1:9", "m", temperature=0.5)
        written = Written("openai", client, ASK, scorers(*names), 4, 100, None, **options)
        said = written.estimate(material(tmp_path, (11, 13)), [(0, 0), (0, 1)])
        assert not said.count("price")
        return [
            int(n.replace(",", ""))
            for n in re.findall(r"([\d,]+) (?:prompts|of them|tokens)", said)
        ]

    prompts, tokens = estimated()
    assert not list(tmp_path.iterdir())
    found, server = explained(tmp_path, answer, names, others=(11, 13), **options)
    asked = found.figures["asked"]
    assert asked["prompts"] == len(server.bodies) > 20
    assert prompts == pytest.approx(asked["prompts"], rel=0.2)
    assert tokens == pytest.approx(asked["tokens_in"], rel=0.2)
    assert estimated() == [asked["prompts"], asked["prompts"], 0]


def test_an_estimate_of_many_features_is_made_from_some(tmp_path, monkeypatch):
    monkeypatch.setattr("dictlearn.explain.written.ESTIMATED", 1)
    written = Written("openai", OpenAI("http://x", "m"), ASK, scorers("detection"), 4, 100)
    written.price_in, written.price_out = 3e3, 15e3
    said = written.estimate(material(tmp_path), [(0, 0), (0, 1)])
    assert re.search(
        r"2 features: about \d+ prompts, [\d,]+ tokens in and \d+ out, [\d.]+ at", said
    )
    assert int(re.findall(r"about (\d+)", said)[0]) == 2 + 8 + 8 + 2 + 8


def test_a_model_that_reasons_gets_room_and_its_thoughts_are_no_description(tmp_path):
    """It thinks for 90 tokens before each answer: a key gives scorers room, and so does max_tokens."""

    def thinking(body):
        words = "<think> " + "DESCRIPTION: [1, 1, 1, 1, 1] " * 15 + " </think> "
        whole = body["max_tokens"] > 100
        return Reply(
            completion(
                words + reader(body) if whole else words[:-30], finish="stop" if whole else "length"
            )
        )

    with serving(thinking) as server:
        for limits, n_cut in (((300, None), 0), ((300, 300), 0), ((300, 60), 8)):
            client = OpenAI(server.url, "m", temperature=0.5)
            written = Written("openai", client, ASK, scorers("fuzzing"), 4, *limits)
            folder = tmp_path / str(limits)
            found = written.explain(material(folder), [(0, 0)], lambda *_: None, lambda _: None)
            assert found.explanations[0].text == "fires on w7"
            assert found.figures["asked"]["cut"] == n_cut
            assert ("fuzzing" in found.explanations[0].scores) == (n_cut == 0)
            assert ("score_tokens" in " ".join(found.told)) == (n_cut > 0)


def test_contexts_of_a_half_stay_in_their_documents(tmp_path):
    one = material(tmp_path)
    contexts = Contexts(one.sample, one.firings, (0, 0), WORDS, "score")
    drawn = contexts.by_interval(20) + contexts.near_misses(5) + contexts.silent(5)
    assert {split_of(c.document) for c in drawn} == {"score"}
    assert all(not c.fires for c in contexts.silent(5))
    assert all(c.activations[c.peak] > 0 for c in contexts.strongest(5))


def test_neighbours_give_near_misses_of_the_same_half(tmp_path):
    """Feature 1 fires on " w9": half of the near misses hold it, and feature 0 is silent in all."""
    one = material(tmp_path)
    for half, part in (("explain", "shown"), ("explain", "chosen"), ("score", None)):
        contexts = Contexts(one.sample, one.firings, (0, 0), WORDS, half, part, 0, [(0, 1)] * 9)
        missed = contexts.near_misses(6)
        assert [c.pieces[c.peak] for c in missed[:3]] == [" w9"] * 3
        assert not any(c.fires for c in missed)
        assert len(set(missed)) == len(missed)
        assert {split_of(c.document) for c in missed} == {half}
        assert part is None or {part_of(c.document) for c in missed} == {part}


def test_a_prompt_with_an_unknown_field_is_refused():
    with pytest.raises(
        ValueError, match=r"\$exmples is no field of it; want description, examples"
    ):
        Detection(Prompt("s", "$description $exmples"))
