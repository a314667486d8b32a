"""`dictlearn vector`: its table, what it writes, what it refuses; and the vector where one is taken."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch

import dictlearn
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.config import compose
from dictlearn.dicts.clt import clt
from dictlearn.dicts.sae import sae
from dictlearn.interventions.vectors import load_vector
from dictlearn.lm.load import read_info
from dictlearn.sparsity.topk import TopK
from dictlearn.verbs import lookup, vector

TEXTS = ["pos=pos.txt", "neg=neg.jsonl"]


@pytest.fixture(autouse=True)
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("os", "sys", "re", "json", "time", "ast")
    Path("pos.txt").write_text("\n".join(f"import {name}" for name in names))
    lines = [json.dumps(f"return {name}\n") for name in names]
    Path("neg.jsonl").write_text("\n".join(lines))


def test_a_vector_is_shown_saved_and_exported(capsys: pytest.CaptureFixture[str]):
    command = [*TEXTS, "pool=mean", "output=vectors/a", "gguf=a.gguf"]
    assert vector.main(compose("vector", command)) == 0
    shown, said = capsys.readouterr()
    lines = shown.splitlines()
    assert lines[0].startswith("difference of means, mean of tokens: 6 texts with the concept, 6 ")
    saved = load_vector("vectors/a")
    for site, score in saved.scores.items():
        line = next(line for line in lines if line.startswith(site))
        assert f"{score.accuracy:.3f}" in line and line.endswith("best") == (site == saved.best)
    assert "a.gguf: a control vector of 3 layers" in said
    assert vector.main(compose("vector", ["vector=vectors/a"])) == 0
    assert capsys.readouterr().out == shown
    same = dictlearn.vector("pico", "pos.txt", "neg.jsonl", pool="mean")
    assert all(torch.equal(same.at(site), saved.at(site)) for site in saved.sites)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "nothing to make a vector of"),
        (["pos=pos.txt"], "nothing to make a vector of"),
        ([*TEXTS, "vector=v"], "pos= and neg= and vector= were given"),
        (["pos=none.txt", "neg=neg.jsonl"], "pos=none.txt: it is not there"),
        (["pos=pos.txt", "neg=[a,b]"], "neg: 2 texts; a held-out accuracy wants at least 4"),
        (["feature=0/1"], "nothing to take the feature from; want run="),
        (["feature=0/1", "vector=v"], "vector= and feature= were given"),
        ([*TEXTS, "method=median"], "method=median: want mean, pca or logistic"),
        ([*TEXTS, "held_out=1"], "held_out=1: want a number from 0 to below 1"),
        (["vector=pos.txt"], "vector=pos.txt: no vector.json there"),
        ([*TEXTS, "site=mlp_in.1", "gguf=a.gguf", "output=b"], "gguf: mlp_in.1 is no end of a"),
        ([*TEXTS, "output=full"], "cannot save full: it holds a, which was not written here"),
        ([*TEXTS, "gguf=pos.txt"], "cannot save pos.txt: it was not written by dictlearn"),
    ],
    ids=str,
)
def test_senseless_requests_are_refused_and_leave_nothing(overrides: list[str], message: str):
    Path("full").mkdir()
    Path("full/a").touch()
    before = sorted(Path().rglob("*"))
    with pytest.raises((ValueError, OSError), match=message):
        vector.main(compose("vector", overrides))
    assert sorted(Path().rglob("*")) == before


def test_a_features_vectors_are_saved_and_exported(capsys: pytest.CaptureFixture[str]):
    one = clt(read_info("pico"), partial(TopK, k=2), n_features=8, k=2).eval()
    save_dictionary(one, Path("runs/a/dictionary"), {"model": "pico", "revision": None})
    command = ["run=runs/a", "feature=1/3", "output=v", "gguf=f.gguf"]
    assert vector.main(compose("vector", command)) == 0
    shown, said = capsys.readouterr()
    assert shown.startswith("what feature mlp_in.1/3 writes, in pico")
    assert "f.gguf: a control vector of 3 layers" in said
    saved = load_vector("v")
    assert saved.sites == ("mlp_out.1", "mlp_out.2", "mlp_out.3")
    for t, site in enumerate(saved.sites, 1):
        assert torch.equal(saved.at(site), one.decoder.written(t, 1, slice(3, 4))[0])
    saved.check(read_info("pico"))
    assert vector.main(compose("vector", [*command[:3], "site=mlp_out.2"])) == 0
    assert load_vector("v").sites == ("mlp_out.2",)
    with pytest.raises(ValueError, match=r"site=mlp_out.0: the feature writes to mlp_out.1, "):
        vector.main(compose("vector", [*command[:2], "site=mlp_out.0"]))


def test_lookup_takes_a_saved_vector_and_a_feature(capsys: pytest.CaptureFixture[str]):
    torch.manual_seed(0)
    one = sae(read_info("pico"), partial(TopK, k=2), "resid_post.1", n_features=40, k=2).eval()
    made = dictlearn.vector("pico", "pos.txt", "neg.jsonl")
    with torch.no_grad():
        one.decoder.W_dec[0, 7] = made.at("resid_post.1")
    save_dictionary(one, Path("runs/a/dictionary"), {"model": "pico", "revision": None})
    made.save("v")
    for named in ("vector=v", "feature=0/7", "feature=resid_post.1/7"):
        assert lookup.main(compose("lookup", ["run=runs/a", named, "output=o.json"])) == 0
        record = json.loads(Path("o.json").read_text())
        first = record["features"][0]
        assert (first["index"], first["side"]) == (7, "decoder") and record[
            "site"
        ] == "resid_post.1"
        assert first["cosine"] == pytest.approx(1, abs=1e-5)
    elsewhere = dictlearn.vector("pico", "pos.txt", "neg.jsonl", "resid_post.2")
    elsewhere.save("w")
    for wrong, message in {
        "vector=w": "vector=w: is at resid_post.2, and the dictionary has resid_post.1",
        "feature=0/40": "feature=0/40: want <source>/<index>",
    }.items():
        with pytest.raises(ValueError, match=message):
            lookup.main(compose("lookup", ["run=runs/a", wrong]))


def test_a_push_takes_a_vector_or_its_path():
    model = dictlearn.open_model("pico")
    made = dictlearn.vector(model, "pos.txt", "neg.jsonl")
    made.save("v")

    def logits(direction: object) -> torch.Tensor:
        push = dictlearn.Push("resid_post.1", direction, 0.5)  # type: ignore[arg-type]
        return model.run("def f", [], push).logits

    assert torch.equal(logits(made), logits(made.at("resid_post.1")))
    assert torch.equal(logits("v"), logits(made))
    with pytest.raises(ValueError, match=r"site=mlp_in.1: the vector is at resid_post.0, "):
        model.run("def f", [], dictlearn.Push("mlp_in.1", made))
    made.provenance["weights"] = "other"  # type: ignore[index]
    with pytest.raises(ValueError, match="and pico has other weights"):
        logits(made)
