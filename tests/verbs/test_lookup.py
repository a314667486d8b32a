"""`dictlearn lookup`: a table and JSON with what is known of each match."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import save_file

from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.config import compose
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.sae import sae
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK
from dictlearn.store.explanations import Explanation, add_explanations
from dictlearn.verbs import lookup
from tests.store.made import RULES, made_store


@pytest.fixture
def dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dictionary:
    """An SAE in runs/a, of as many features as the store beside it has."""
    monkeypatch.chdir(tmp_path)
    n = len(RULES)
    one = sae(read_info("pico"), partial(TopK, k=2), "resid_post.1", n_features=n, k=2).eval()
    save_dictionary(one, tmp_path / "runs/a/dictionary", {"model": "pico", "revision": None})
    save_file({"v": one.decoder.W_dec[0, 1].detach().clone()}, tmp_path / "v.safetensors")
    return one


def test_what_is_known_stands_beside_a_match(
    dictionary: Dictionary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store = made_store(tmp_path / "runs/a")
    said = Explanation(0, 1, "digits", "lexical", scores={"balanced_accuracy": 0.9}, reliable=True)
    doubted = Explanation(0, 0, "perhaps `self`", "lexical")
    add_explanations(store.folder, [said, doubted])
    overrides = ["run=runs/a", "vector=v.safetensors", "output=found/out.json", "features=6"]
    overrides.append("examples=3")
    assert lookup.main(compose("lookup", overrides)) == 0
    record = json.loads(Path("found/out.json").read_text())
    first = record["features"][0]
    assert (first["source"], first["index"]) == (0, 1) and first["cosine"] == pytest.approx(1)
    assert first["description"] == "digits" and first["reliable"] is True
    assert first["density"] == store.feature(0, 1).density and len(first["examples"]) == 3
    assert any(letter.isdigit() for letter in first["examples"][0]["peak"])
    assert first["feature"] == "resid_post.1/1"
    printed = capsys.readouterr().out.splitlines()
    assert [line.split() for line in printed if "+1.000" in line] == [
        ["resid_post.1/1", side, "+1.000", f"{first['density']:.2%}", "0.90", "digits"]
        for side in ("reads", "writes")
    ]
    assert any('unreliable: perhaps "self"' in line for line in printed)


def test_a_match_is_one_line_with_its_firing_token_marked(
    dictionary: Dictionary,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "80")
    made_store(tmp_path / "runs/a")
    assert lookup.main(compose("lookup", ["run=runs/a", "vector=v.safetensors", "features=6"])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 12 and max(map(len, lines)) <= 80
    assert lines[1] == "reads: cosine with its encoder row; writes: with its decoder row"
    assert sum("never fired" in line for line in lines) == 4  # two features, on both sides
    assert all("<<" in line and ">>" in line for line in lines[3:] if "never fired" not in line)
    more = ["run=runs/a", "vector=v.safetensors", "features=6", "examples=2"]
    assert lookup.main(compose("lookup", more)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 + 12 + 2 * 8 and max(map(len, lines)) <= 80


def test_text_gives_the_terminal_no_orders():
    example = {
        "before": "a\x1b[31m\n   b",
        "peak": "\u202e\r\n",
        "after": "\x07",
        "activation": 1.0,
    }
    row = {
        "feature": "x/1",
        "side": "encoder",
        "cosine": 1.0,
        "density": 0.1,
        "examples": [example],
    }
    text = "".join(line.plain for line in lookup.lines("x", [row], 1))
    assert text.isprintable()


def test_features_of_another_dictionary_are_not_shown(dictionary: Dictionary, tmp_path: Path):
    made_store(tmp_path / "runs/b")
    (tmp_path / "runs/b/features").rename(tmp_path / "runs/a/features")
    with pytest.raises(ValueError, match="are those of another dictionary"):
        lookup.main(compose("lookup", ["run=runs/a", "vector=v.safetensors", "output=out.json"]))
    assert not Path("out.json").exists()


def test_texts_give_a_difference_of_means(dictionary: Dictionary, capsys):
    texts = ["pos='import os|||import sys'", "neg=[return x,pass]", "output=out.json", "features=2"]
    assert lookup.main(compose("lookup", ["run=runs/a", *texts])) == 0
    record = json.loads(Path("out.json").read_text())
    assert record["site"] == "resid_post.1" and record["norm"] > 0
    assert {row["side"] for row in record["features"]} == {"encoder", "decoder"}
    assert "no examples are shown" in capsys.readouterr().err


def test_one_string_may_hold_several_texts():
    cfg = compose("lookup", ["pos='a|||b c'", "neg=[d,e]"])
    assert lookup.texts("pos", cfg.pos) == ["a", "b c"]
    assert lookup.texts("neg", cfg.neg) == ["d", "e"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to look up; want vector=<file or folder>, feature="),
        (["pos=a"], "nothing to look up"),
        (["pos=a", "neg=b", "vector=v.safetensors"], "nothing to look up"),
        (["vector=v.safetensors", "features=0"], "features=0: want a whole number of at least 1"),
        (["vector=v.safetensors", "examples=-1"], "examples=-1: want a whole number of at least 0"),
        (["vector=v.safetensors", "site=mlp_in.0"], "site=mlp_in.0: this sae has resid_post.1"),
    ],
    ids=str,
)
def test_senseless_requests_are_refused(dictionary: Dictionary, overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        lookup.main(compose("lookup", ["run=runs/a", *overrides]))
