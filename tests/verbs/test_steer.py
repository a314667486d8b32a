"""`dictlearn steer`: two texts side by side, units of strength, and what is refused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.config import compose
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.sae import sae
from dictlearn.interventions import run as passes
from dictlearn.interventions.edits import Edit
from dictlearn.lm.load import load_model, read_info
from dictlearn.sparsity.topk import TopK
from dictlearn.store.explanations import Explanation, add_explanations
from dictlearn.store.output_scores import write_output_scores
from dictlearn.verbs import steer
from tests.store.made import RULES, made_store

RUN = ["run=runs/a", "prompt='import os'", "tokens=6", "output=out.json"]


@pytest.fixture
def dictionary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dictionary:
    """An SAE in runs/a, of as many features as the store that `made_store` puts beside it."""
    monkeypatch.chdir(tmp_path)
    n = len(RULES)
    one = sae(read_info("pico"), partial(TopK, k=2), "resid_post.1", n_features=n, k=2).eval()
    save_dictionary(one, tmp_path / "runs/a/dictionary", {"model": "pico", "revision": None})
    save_file({"v": one.decoder.W_dec[0, 1].detach().clone()}, tmp_path / "v.safetensors")
    return one


def run(*overrides: str) -> list[dict]:
    assert steer.main(compose("steer", [*RUN, *overrides])) == 0
    return json.loads(Path("out.json").read_text())["steered"]


def test_a_strength_counts_in_largest_activations(dictionary: Dictionary, tmp_path: Path):
    store = made_store(tmp_path / "runs/a")
    row = run("feature=0/1", "op=set", "strength=60")[0]
    maximum = store.feature(0, 1).maximum
    assert row["value"] == pytest.approx(60 * maximum)
    lm = load_model("pico")
    ids = torch.tensor([[1, *lm.tokenizer(row["prompt"] + row["before"])["input_ids"]]])  # type: ignore[misc]
    edits = [Edit(1, 60 * maximum)]
    kl = passes.effect(lm, ids, [dictionary], edits).kl[0, 1:].mean()
    assert row["kl"] == pytest.approx(float(kl), rel=1e-4) and row["kl"] > 0
    (text,) = passes.generate(lm, [ids[0, :3].tolist()], [dictionary], edits, max_tokens=6)
    assert row["after"] == lm.tokenizer.decode(text) != row["before"]  # type: ignore[union-attr]


def test_a_push_along_its_decoder_row_adds_what_adding_to_it_does(dictionary: Dictionary):
    unit, strength = "unit=activation", "strength=200"
    added = run("feature=1", "op=add", unit, strength)
    pushed = run("feature=1", "op=push", unit, strength)
    assert added[0]["after"] == pushed[0]["after"]
    assert added[0]["kl"] == pytest.approx(pushed[0]["kl"], rel=1e-3)
    vector = ["vector=v.safetensors", "site=resid_post.1", strength]
    assert run(*vector)[0]["after"] == added[0]["after"]


def test_strength_zero_and_a_silent_gate_change_nothing(dictionary: Dictionary, tmp_path: Path):
    made_store(tmp_path / "runs/a")
    for row in run("feature=[1,2]", "op=add", "strength=[0]"):
        assert row["kl"] == 0 and row["before"] == row["after"]
    silent = run("feature=1", "strength=0", "when=token", "gate=2")
    assert [row["kl"] for row in silent] == [0]


def test_texts_stand_side_by_side_in_80_columns(
    dictionary: Dictionary, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    store = made_store(tmp_path / "runs/a")
    add_explanations(store.folder, [Explanation(0, 1, "digits", "lexical", reliable=True)])
    rows = run("feature=1", "strength=[1,2]", "prompt='a = 1|||import os'")
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80 and lines[0] == "resid_post.1/1  digits"
    assert sum("nats per token" in line for line in lines) == len(rows) == 4
    assert sum(line.split() == ["before", "after"] for line in lines) == 4
    assert any(line.split() == ["import", "os", "import", "os"] for line in lines)


def test_several_seeds_sample_several_texts(dictionary: Dictionary):
    rows = run("feature=1", "unit=activation", "temperature=1", "seed=[0,1,2]", "strength=1")
    assert [row["seed"] for row in rows] == [0, 1, 2] and len({row["before"] for row in rows}) > 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to steer by"),
        (["feature=1", "vector=v.safetensors"], "were both given"),
        (["feature=1"], "runs/a has no features/"),
        (["feature=9", "unit=activation"], "feature=9: want <source>/<index>"),
        (["feature=1", "unit=activation", "prompt=null"], "prompt: want the text"),
        (["feature=1", "unit=activation", "seed=[0,1]"], "temperature=0 every seed"),
        (["feature=1", "unit=activation", "gate=2"], "gate: is asked only with"),
        (["feature=1", "unit=activation", "tokens=100000"], "tokens=100000: with the prompt's"),
        (["vector=v.safetensors"], "names no site; want site="),
        (["vector=v.safetensors", "site=resid_post.1", "op=scale"], "op=scale: changes a feature"),
        (["vector=v.safetensors", "site=resid_post.1", "when=token"], "want gate=<a feature>"),
        (["vector=v.safetensors", "run=null"], "model: want the model that the vector is for"),
    ],
)
def test_what_is_refused_leaves_nothing(
    dictionary: Dictionary, overrides: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(*overrides)
    assert not Path("out.json").exists()


def test_features_with_a_low_output_score_are_left_out(dictionary: Dictionary, tmp_path: Path):
    store = made_store(tmp_path / "runs/a")
    with pytest.raises(ValueError, match="no output scores are here"):
        run("feature=[0,1]", "min_output_score=0.1")
    scores_SF = torch.tensor([[0.05, 0.2, torch.nan, 0, 0, 0]])
    write_output_scores(store.folder, store.info, scores_SF)
    assert [row["steered"] for row in run("feature=[0,1,2]", "min_output_score=0.1")] == [
        "resid_post.1/1"
    ]
    with pytest.raises(ValueError, match=r"none of the features reaches it; the best has 0.2000"):
        run("feature=[0,1,2]", "min_output_score=0.3")


def test_a_feature_that_never_fired_has_no_unit(dictionary: Dictionary, tmp_path: Path):
    made_store(tmp_path / "runs/a")
    with pytest.raises(ValueError, match="never fired"):
        run("feature=3")
