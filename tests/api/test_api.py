"""What `import dictlearn` offers: keywords become overrides, mistakes become ValueError."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import dictlearn
from dictlearn import api, config
from dictlearn.api.call import composed
from dictlearn.api.results import figures_of
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.verbs import evaluate, train
from tests.dictionaries import small_dictionary


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def record(**figures: Any) -> dict[str, Any]:
    described = {"kind": "sae", "n_features": 40, "sources": ["resid_post.0"]}
    return {"dictionary": described, "figures": figures, "text": {"tokens": 100}, "baselines": {}}


def saved_run(folder: Path, written: Any) -> Path:
    save_dictionary(small_dictionary().float(), folder / "dictionary", {"model": "pico"})
    (folder / "figures.json").write_text(
        written if isinstance(written, str) else json.dumps(written)
    )
    return folder


def test_importing_takes_no_torch_and_rooms_can_be_called():
    code = (
        "import sys, dictlearn; assert 'torch' not in sys.modules and 'hydra' not in sys.modules\n"
        "assert set(dir(dictlearn)) >= {'load', 'train', 'evaluate', 'features', 'open_model'}\n"
        "from dictlearn import features, train\n"
        "import dictlearn.train.schedules, dictlearn.features.settings\n"
        "assert dictlearn.train is train and callable(train) and callable(dictlearn.features)\n"
        "try: dictlearn.lod\n"
        "except AttributeError as error: assert 'lod' in str(error)\n"
        "else: raise SystemExit('no error')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["dict=transcoder", "dict.k=16", "steps=7", "optim.lr=3e-4", "name=a b"], {}),
        ([["dict=transcoder", "dict.k=16"], "steps=7"], {"optim": {"lr": 3e-4}, "name": "a b"}),
        (["dict.k=16", "optim.lr=3e-4"], {"dict": "transcoder", "steps": 7, "name": "a b"}),
    ],
    ids=["strings", "both", "keywords"],
)
def test_overrides_are_those_of_the_command_line(overrides, keys):
    cfg = composed("train", overrides, keys)
    expected = config.compose(
        "train", ["dict=transcoder", "dict.k=16", "steps=7", "optim.lr=3e-4", "name='a b'"]
    )
    assert cfg == expected


@pytest.mark.parametrize(
    "value",
    ["1", "true", "null", "", "it's", "C:\\notes\\", "a,b", "a\\'b", "[x]", "a=b", "a # b", "é"],
)
def test_text_stays_text(value):
    assert composed("train", [], {"name": "x", "init": value}).init == value
    assert composed("train", ["data=text"], {"data": {"paths": [value]}}).data.paths == [value]


@pytest.mark.parametrize("value", ["1", "a'b, {c: d}"])
def test_texts_of_a_mixture_are_named_by_a_dict(value):
    parts: dict[str, Any] = {
        "a": {"data": "text", "paths": [value]},
        "b": {"data": "chat", "path": value, "template_values": {"mark": value, "on": True}},
    }
    found = composed("train", ["data=mix"], {"data": {"parts": parts, "weights": {"a": 2}}}).data
    assert found.parts.a.paths == [value] and found.weights.a == 2
    assert found.parts.b.template_values == {"mark": value, "on": True}
    other = composed("train", ["data=mix"], {"data.parts": parts, "data.weights": {"a": 2}}).data
    assert found == other


def test_values_of_every_kind():
    keys = {
        "clip_norm": None,
        "unit_norm": False,
        "run_dir": Path("somewhere"),
        "dict": {"layer": torch.tensor(2), "prefixes": (0.5, 1.0)},
        "optim": {"lr": torch.tensor(0.5)},
    }
    cfg = composed("train", [], keys)
    assert cfg.clip_norm is None and cfg.unit_norm is False and cfg.run_dir == "somewhere"
    assert cfg.dict.layer == 2 and cfg.dict.prefixes == [0.5, 1.0] and cfg.optim.lr == 0.5


@pytest.mark.parametrize(
    ("overrides", "keys", "message"),
    [
        (["optm.lr=1"], {}, "optm.lr=1: no such key; did you mean optim.lr?"),
        ([], {"dict": "sea"}, "dict=sea: choose from .* did you mean sae"),
        ([], {"steps": "many"}, "steps='many': want a number|steps=.?many"),
        ([], {"steps": object()}, "steps=<object .* want a number, text"),
        ([3], {}, "3: want overrides as strings"),
        (["dict.k=1,2"], {}, "several values want -m"),
        (["model=hf"], {}, "model.path: no value was given"),
        (["steps=0"], {}, "steps=0: want a whole number of at least 1"),
        ([], {"trainer": {"devices": 2}}, "trainer.devices=2: several processes"),
    ],
)
def test_mistakes_are_value_errors(overrides, keys, message):
    with pytest.raises(ValueError, match=message):
        dictlearn.train(*overrides, **keys)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("status", "error"),
    [(0, None), (1, RuntimeError), (130, KeyboardInterrupt), (143, SystemExit)],
)
def test_a_status_becomes_an_exception(status, error, monkeypatch):
    monkeypatch.setattr(train, "main", lambda cfg: status)
    if error is None:
        run = dictlearn.train(name="a")
        assert run.path == Path("runs/a").resolve() and run.report == run.path / "report.html"
        return
    with pytest.raises(error) as raised:
        dictlearn.train(name="a")
    if status == 130:
        assert str(raised.value) == "dictlearn.train(resume='auto', name='a') goes on"


def test_a_dictionary_knows_the_figures_of_its_run():
    run = saved_run(Path("runs/a"), record(fvu=0.25, l0=4.0, kl=None))
    for path in (run, run / "dictionary"):
        loaded = dictlearn.load(path)
        assert loaded.figures == {"tokens": 100.0, "fvu": 0.25, "l0": 4.0}
        assert "sae of pico" in repr(loaded) and "FVU 0.2500" in repr(loaded)
    finished = api.Run(run)
    assert "FVU 0.2500" in repr(finished) and str(run) in repr(finished)
    assert finished.figures == {"fvu": 0.25, "l0": 4.0}


@pytest.mark.parametrize(
    "written",
    ["{", "[]", "3", {"figures": 3}, record(fvu="0.1", l0=True) | {"dictionary": {"kind": "clt"}}],
    ids=str,
)
def test_figures_of_another_dictionary_or_damaged_ones_are_none(written):
    run = saved_run(Path("runs/a"), written)
    assert dictlearn.load(run).figures == {}
    assert figures_of(run / "nowhere", small_dictionary()) == {}


def test_evaluate_takes_a_run_or_a_dictionary(monkeypatch):
    run = saved_run(Path("runs/a"), record(fvu=0.25))
    seen = []

    def main(cfg):
        seen.append((cfg.run, cfg.dictionary, cfg.eval_tokens))
        folder = Path("runs/a")
        Path("evaluations/a").mkdir(parents=True, exist_ok=True)
        Path("evaluations/a/figures.json").write_bytes((folder / "figures.json").read_bytes())
        return 0

    monkeypatch.setattr(evaluate, "main", main)
    for given in (run, str(run), api.Run(run)):
        assert dictlearn.evaluate(given, eval_tokens=64).path == run.resolve()
    assert dictlearn.evaluate(run / "dictionary").path == Path("evaluations/a").resolve()
    assert dictlearn.evaluate(run).figures == {"fvu": 0.25}
    assert seen[:3] == [("runs/a", None, 64)] * 3
    assert seen[3][:2] == (None, "runs/a/dictionary")
    with pytest.raises(
        ValueError, match=r"evaluate: want a run, .* not a Dictionary; save it first"
    ):
        dictlearn.evaluate(small_dictionary())  # type: ignore[arg-type]


def test_a_model_gives_activations_of_text():
    model = dictlearn.open_model("pico", dtype="float32")
    assert model.names("mlp_out.1")["saelens"] == "blocks.1.hook_mlp_out"
    assert model.site("interp_engine", "mlp_out_post.1") == "mlp_out.1"
    assert repr(model).startswith("Model: pico\n  qwen3, 4 layers, width 256, vocabulary 4,096")
    tokens = model.tokens("import os\n")
    assert "".join(model.pieces(tokens[1:])) == "import os\n"
    assert model.special(tokens).tolist() == [True] + [False] * (len(tokens) - 1)
    one = model.activations("import os\n", "resid_post.1")
    assert one.shape == (len(tokens), 256)
    two = model.activations("import os\n", ["resid_post.1", "mlp_in.2"])
    assert two.shape == (len(tokens), 2, 256) and torch.equal(two[:, 0], one)
    batch = model.activations(tokens.expand(3, -1), "resid_post.1")
    assert batch.shape == (3, *one.shape)
    torch.testing.assert_close(batch[2], one)
    for wrong, message in (
        ("import os\n" * 400, "tokens: pico reads at most 512 at once"),
        (torch.zeros(4), "want whole numbers"),
        (torch.tensor([9999]), "token ids: pico has those from 0 to 4095"),
    ):
        with pytest.raises(ValueError, match=message):
            model.activations(wrong, "resid_post.1")
    for keys, message in (({"device": "gpu9"}, "model.device=gpu9"), ({"modle": 1}, "no such key")):
        with pytest.raises(ValueError, match=message):
            dictlearn.open_model("pico", **keys)
    with pytest.raises(ValueError, match="resid_pots"):
        model.activations(tokens, "resid_pots.1")
