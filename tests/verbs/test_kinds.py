"""Kinds of several layers from the command line: trained, evaluated, resumed, read back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import dictlearn
from dictlearn import cli, config
from dictlearn.lm.capture import capture
from dictlearn.lm.load import load_model
from dictlearn.verbs import build
from tests.lines import settled

SMALL = [
    "steps=6",
    "batch_tokens=256",
    "source.buffer_tokens=2048",
    "source.lm_batch_windows=4",
    "data.context=128",
    "data.max_tokens=20000",
    "dict.n_features=48",
    "dict.k=4",
    "eval_tokens=512",
    "eval.baselines.fit_tokens=2048",
    "eval.jacobian.tokens=32",
    "trainer.log_every_n_steps=2",
    "trainer=cpu",
    "callbacks.checkpoint.every_steps=3",
]
# Where only what was trained is looked at.
UNEVALUATED = ["~eval.baselines", "~eval.jacobian", "~eval.replacement", "~eval.downstream"]


def train(folder: Path, *overrides: str) -> int:
    """Exit status of `dictlearn train ...` in `folder`."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dictlearn", "train", *settled(*SMALL, *overrides)])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["plt", "crosscoder"])
def test_a_run_of_all_layers_leaves_a_dictionary_of_raw_activations(kind, tmp_path):
    assert train(tmp_path, f"dict={kind}", "name=run") == 0
    dictionary = dictlearn.load(tmp_path / "runs" / "run")
    lm = load_model("pico")
    acts = capture(lm, torch.arange(100, 132)[None], [*dictionary.sources, *dictionary.targets])
    x_NSD = torch.stack([acts[site][0] for site in dictionary.sources], dim=1)
    y_hat = dictionary.decode(dictionary.encode(x_NSD), x_NSD)
    assert y_hat.shape == (32, 4, lm.info.width) and bool(y_hat.isfinite().all())
    figures = json.loads((tmp_path / "runs" / "run" / "figures.json").read_text())["figures"]
    assert 0 < figures["fvu"] < 1.5 and figures["l0"] > 0


@pytest.fixture(scope="module")
def clt(tmp_path_factory) -> Path:
    """The folder of a CLT's run, which trains the PLT of equal parameters beside it."""
    folder = tmp_path_factory.mktemp("clt")
    assert train(folder, "dict=clt", "name=whole") == 0
    return folder / "runs" / "whole"


def test_a_clt_comes_with_the_per_layer_transcoders_of_its_size_and_both_resume(clt, tmp_path):
    dictionary = dictlearn.load(clt)
    beside = dictlearn.load(clt / "beside" / "plt")
    assert (dictionary.kind, beside.kind) == ("clt", "plt")
    sizes = [sum(p.numel() for p in one.parameters()) for one in (dictionary, beside)]
    assert abs(sizes[0] - sizes[1]) < 0.01 * sizes[0]
    assert "plt" in (clt / "report.html").read_text().lower()

    step = clt / "checkpoints" / "step-3"
    assert train(tmp_path, "dict=clt", "name=cut", f"resume={step}", *UNEVALUATED) == 0
    cut = tmp_path / "runs" / "cut"
    for ours, theirs in ((dictionary, cut), (beside, cut / "beside" / "plt")):
        again = dictlearn.load(theirs).state_dict()
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, again[name]), name


def test_a_dictionary_in_company_trains_as_it_would_alone(clt, tmp_path):
    assert train(tmp_path, "dict=clt", "name=alone", "beside=false", *UNEVALUATED) == 0
    alone = tmp_path / "runs" / "alone"
    in_company = dictlearn.load(clt).state_dict()
    for name, tensor in dictlearn.load(alone).state_dict().items():
        assert torch.equal(tensor, in_company[name]), name
    assert (clt / "beside").exists() and not (alone / "beside").exists()


@pytest.mark.parametrize(
    ("overrides", "beside"),
    [
        (["beside=auto"], ["plt"]),
        (["beside=auto", "init=runs/x"], []),
        (["beside=true", "init=runs/x"], ["plt"]),
        (["beside=false"], []),
    ],
    ids=" ".join,
)
def test_what_is_trained_beside_a_clt_is_what_was_asked_for(overrides, beside):
    cfg = config.compose("train", ["dict=clt", *SMALL, *overrides])
    assert (
        list(build.build_beside(cfg, build.build_dictionary(cfg, build.build_info(cfg)))) == beside
    )


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> Path:
    """pico with one weight changed: somebody's fine-tune."""
    lm = load_model("pico")
    lm.model.model.layers[1].mlp.down_proj.weight.data.mul_(1.5)
    folder = tmp_path_factory.mktemp("tuned") / "tuned"
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
    return folder


def test_a_crosscoder_reads_a_model_and_its_fine_tune(tuned, tmp_path):
    sites = ["resid_post.1", "other/resid_post.1"]
    wanted = f"dict.sites=[{','.join(sites)}]"
    assert train(tmp_path, "dict=crosscoder", "name=diff", f"model.other={tuned}", wanted) == 0
    dictionary = dictlearn.load(tmp_path / "runs" / "diff")
    assert list(dictionary.sources) == sites
    assert dictionary.provenance["other_model"] == str(tuned)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(tmp_path)  # and reads both again, without being told
        patch.setattr(sys, "argv", ["dictlearn", "evaluate", "run=runs/diff", "eval_tokens=512"])
        cli.main()
    assert not exit_.value.code
    lm = load_model("pico", other=str(tuned))
    tokens = torch.arange(100, 132)[None]
    acts = capture(lm, tokens, sites)
    assert not torch.equal(*acts.values())
    assert torch.equal(acts[sites[1]], capture(lm.at(sites[1])[0], tokens, sites[:1])[sites[0]])


def test_sites_of_an_absent_model_are_refused(tuned, tmp_path, capsys):
    assert train(tmp_path, "dict=crosscoder", "name=x", "dict.sites=[other/resid_post.1]") == 2
    assert "model.other=<path> names it" in capsys.readouterr().err
    assert train(tmp_path, "dict=clt", "name=x", "beside=maybe") == 2
    assert "beside=maybe: want auto, true or false" in capsys.readouterr().err


def test_a_model_of_other_tokens_is_no_other_model(tuned, tmp_path):
    folder = tmp_path / "odd"
    lm = load_model(str(tuned))
    lm.model.resize_token_embeddings(4097)
    lm.model.save_pretrained(folder)
    lm.tokenizer.add_tokens(["<odd>"])  # type: ignore[union-attr]
    lm.tokenizer.save_pretrained(folder)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="want the tokenizer of pico; theirs differ"):
        load_model("pico", other=str(folder))
