"""Interventions from Python: the page in docs/ as it stands, and wrong arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from figures.printed import blocks, run_python

import dictlearn
from dictlearn.api.placed import Firings
from dictlearn.dicts.sae import sae
from dictlearn.sparsity.topk import TopK

PAGE = Path(__file__).parents[2] / "docs" / "interventions.md"


@pytest.fixture(scope="module")
def model() -> dictlearn.api.OpenModel:  # type: ignore[name-defined]
    return dictlearn.open_model("pico")


@pytest.fixture(scope="module")
def small(model):
    torch.manual_seed(0)
    return sae(model.info, lambda **sizes: TopK(k=4, **sizes), n_features=32, k=4, layer=1).eval()


def test_the_page_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for language, code in blocks(PAGE.read_text(encoding="utf-8")):
        assert language == "python"
        run_python(code, names)
    model, text = names["model"], names["text"]
    clean = model.lm.logits(model.tokens(text)[None])
    assert torch.equal(names["effect"].before.logits, clean)
    assert not torch.equal(names["effect"].after.logits, clean)
    assert not torch.equal(names["direct"].after.logits, names["frozen"].after.logits)
    assert names["steered"] != names["plain"] and len(names["pair"]) == 2
    assert capsys.readouterr().out.replace("\n", ""), "on_text=print"
    assert isinstance(names["firings"], Firings)


def test_firings_are_the_strongest_of_each_token(model, small):
    text = "import os\n"
    every, two = model.features(text, small), model.features(text, small, strongest=2)
    pieces = model.pieces(model.tokens(text))
    code = small.encode(model.activations(text, "resid_post.1"))
    assert len(every) == int(code.l0_NS[1:].sum()) and len(two) == 2 * (len(pieces) - 1)
    for position, piece in list(enumerate(pieces))[1:]:
        ours = [f for f in every if f.position == position]
        kept = [f for f in two if f.position == position]
        assert kept == ours[:2] and ours[0].token == piece
        assert [f.value for f in ours] == sorted((f.value for f in ours), reverse=True)
    assert every[0].feature == f"resid_post.1/{every[0].index}"
    assert repr(two).count("\n") == len(two) - 1


def test_the_context_manager_is_for_every_pass_and_ends(model, small):
    tokens = model.tokens("import os\n")[None]
    clean = model.lm.logits(tokens)
    with model.with_dictionaries(small, dictlearn.Edit(3, 9.0)):
        assert not torch.equal(model.lm.logits(tokens), clean)
    assert torch.equal(model.lm.logits(tokens), clean)


def test_streamed_text_is_the_text(model):
    said: list[str] = []
    text = model.generate("import os\n", max_tokens=8, on_text=said.append)
    assert len(said) > 1 and "".join(said) == text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, d: m.run("a", d, [(1, 2, 3)]), "want an Edit, a Push or"),
        (lambda m, d: m.run("a", d, dictlearn.Edit(99, 1.0)), "feature=99: want one from 0 to 31"),
        (lambda m, d: m.run("a", d, constrained="all"), "constrained='all': want True, False or"),
        (lambda m, d: m.run("a", d, constrained=range(1, 9)), "want blocks from 0 to 3"),
        (lambda m, d: m.features("a", d, strongest=0), "strongest=0: want at least 1"),
        (lambda m, d: m.run("a", d, error=False, constrained=True), "nothing can be held then"),
        (lambda m, d: m.run("a", [d, d]), "dictionaries 0 and 1 both write resid_post.1"),
        (lambda m, d: m.run("a", 3), "run: want a run, a folder or a hub id"),
        (lambda m, d: m.run("a", d, 3), "3: want an Edit, a Push or"),
        (lambda m, d: m.generate([]), "want a text, or a list of texts"),
        (lambda m, d: m.generate(5), "prompt=5: want a text, or a list of texts"),
        (
            lambda m, d: m.generate("a", max_tokens=0),
            "max_tokens=0: want a whole number of at least",
        ),
        (
            lambda m, d: m.generate("a", temperature=-1),
            "temperature=-1: want a number of at least 0",
        ),
        (
            lambda m, d: m.run("a", dictlearn.Edit(3, 1.0)),
            "run: the dictionaries come before the edits",
        ),
        (lambda m, d: m.generate(["a", "b"], on_text=print), "takes the text of one prompt"),
        (lambda m, d: m.generate("a", max_tokens=10**6), "reads at most"),
    ],
)
def test_wrong_arguments_are_refused_in_a_sentence(call, message, model, small):
    with pytest.raises(ValueError, match=message):
        call(model, small)
