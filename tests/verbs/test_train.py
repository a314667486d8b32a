"""`dictlearn train` from the command line to what it leaves behind."""

from __future__ import annotations

import csv
import errno
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import dictlearn
from dictlearn import cli
from dictlearn.lm.capture import capture
from dictlearn.lm.hub import PICO_PATH
from dictlearn.lm.load import load_model
from dictlearn.verbs import build, evaluate, train
from dictlearn.verbs.described import tokens_of
from tests.lines import settled

SMALL = [
    "steps=6",
    "batch_tokens=256",
    "source.buffer_tokens=2048",
    "source.lm_batch_windows=4",
    "data.context=128",
    "data.max_tokens=20000",
    "dict.n_features=64",
    "dict.k=8",
    "eval_tokens=1024",
    "eval.baselines.fit_tokens=2048",
    "trainer.log_every_n_steps=2",
    "trainer=cpu",
]


def dictlearn_train(folder: Path, *overrides: str) -> int:
    """Exit status of `dictlearn train ...` in `folder`."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["dictlearn", "train", *settled(*SMALL, *overrides)])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("train")
    assert dictlearn_train(folder, "name=first", "callbacks.checkpoint.every_steps=3") == 0
    return folder / "runs" / "first"


def test_a_run_leaves_all_that_was_promised(run):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "metrics.csv",
        "checkpoints/step-3/manifest.json",
        "checkpoints/step-6/manifest.json",
        "checkpoints/LATEST",
        "dictionary/dictionary.safetensors",
        "dictionary/dictionary.json",
        "figures.json",
        "report.html",
    ):
        assert (run / name).is_file(), name
    assert list((run / "figures").glob("*.png"))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert [row["tokens"] for row in rows] == [512, 1024, 1536]
    assert {"loss", "loss/reconstruction", "fvu", "l0", "dead", "lr"} <= set(rows[0])
    with (run / "metrics.csv").open() as file:
        assert [float(row["fvu"]) for row in csv.DictReader(file)] == [row["fvu"] for row in rows]


def test_the_loaded_dictionary_reads_and_writes_raw_activations(run):
    dictionary = dictlearn.load(run)
    assert dictionary.sources == dictionary.targets == ("resid_post.1",)
    assert dictionary.provenance["tokens"] == 6 * 256
    lm = load_model("pico")
    tokens = torch.randint(4, 4000, (4, 64))
    x_NSD = capture(lm, tokens, dictionary.sources)["resid_post.1"].flatten(0, 1)[:, None]
    code = dictionary.encode(x_NSD)
    assert code.l0_NS.max() <= 8 and code.l0_NS.min() > 0
    y_hat = dictionary(x_NSD)
    mean_error = (x_NSD - x_NSD.mean(0)).square().sum()
    assert (x_NSD - y_hat).square().sum() < 2 * mean_error  # six steps: in the right units at least
    torch.testing.assert_close(y_hat, dictionary.decode(code))
    assert not any(p.requires_grad for p in dictionary.parameters())


def test_a_run_cut_in_two_is_the_run_in_one_piece(run, tmp_path):
    unevaluated = ["name=cut", "~eval.baselines", "~eval.downstream"]
    assert dictlearn_train(tmp_path, *unevaluated, "callbacks.checkpoint.every_steps=3") == 0
    cut = tmp_path / "runs" / "cut"
    for file in (cut / "checkpoints").glob("step-6/*"):
        file.unlink()
    (cut / "checkpoints/step-6").rmdir()
    (cut / "checkpoints/LATEST").unlink()
    assert dictlearn_train(tmp_path, *unevaluated, "resume=auto") == 0
    whole, resumed = (dictlearn.load(folder).state_dict() for folder in (run, cut))
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name
    metrics = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in (run, cut)
    ]
    for one, other in zip(*metrics, strict=True):
        timing = {"tokens_per_second"}
        assert {k: v for k, v in one.items() if k not in timing} == {
            k: v for k, v in other.items() if k not in timing
        }


def test_the_first_line_says_what_a_run_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "fit", lambda *_: (_ for _ in ()).throw(ValueError("enough")))
    assert dictlearn_train(tmp_path, "name=said", "steps=6", "dict.n_features=4096") == 2
    first, *rest = capsys.readouterr().err.splitlines()
    for word in ("runs/said", "sae", "4,096 features", "resid_post.1", "pico", "tokens", "the CPU"):
        assert word in first
    few = (
        "0.00073 tokens a parameter, less than a thousandth of what published runs have (1.7 to 37)"
    )
    assert rest == [few, "enough"]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        (960, "960 tokens of notes.txt"),
        (1000, "1,000 tokens of notes.txt"),
        (1450, "960 tokens of notes.txt, read 1.5 times"),
        (31_700, "960 tokens of notes.txt, read 33 times"),
    ],
)
def test_a_text_that_is_read_several_times_is_said(wanted, said):
    assert tokens_of(wanted, build.NoText(960), "notes.txt") == said


def test_a_folder_holds_one_run(run, capsys):
    assert dictlearn_train(run.parents[1], "name=first") == 2
    assert "holds a run already; resume=auto continues it" in capsys.readouterr().err


def test_a_run_does_not_continue_with_another_configuration(run, capsys):
    assert dictlearn_train(run.parents[1], "name=first", "resume=auto", "optim.lr=0.5") == 2
    assert "optim.lr: 0.002 in the checkpoint, 0.5 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["dict.layer=36"], "dict.layer=36: pico has layers 0 to 3"),
        (["dict.site=resid_pots.1"], "resid_pots.1"),
        (["dict.k=65"], "dict.k=65: want more than 0 and at most dict.n_features=64"),
        (["batch_tokens=4096"], "source.buffer_tokens=2048"),
        (["steps=0"], "steps=0: want a whole number of at least 1"),
        (["trainer=gpu"], "no CUDA device here; use trainer=cpu"),
        (["trainer.precision=16-true"], "trainer.precision=16-true: want 32-true, bf16-mixed"),
        (["trainer.precision=bf16-true"], "weights stay float32"),
        (["data.held_out=0"], "data.held_out=0: holds out no text to evaluate on"),
        (["data.context=1"], "data.context=1: pico reads 2 to 512 tokens"),
        (["sparsity=relu", "objective.terms.l1.warmup=2"], "warmup=2: want a number from 0 to 1"),
        (["model=./no/such/folder"], "model.path=./no/such/folder: no such folder"),
        (["model=./no/such/folder", "data=stdlib"], "model.path=./no/such/folder"),
        (["resume=runs/none"], "resume=runs/none: there is no such folder"),
        (["dict.k=a"], "dict.k=a"),
        (["normalise=l2"], "normalise=l2: want sqrt_width, unit or none"),
        (["optim.lr=-1"], "optim.lr=-1: want a number of at least 0"),
        (
            ["callbacks.checkpoint.every_steps=0"],
            "every_steps=0: want a whole number of at least 1",
        ),
        (["eval_tokens=0"], "eval_tokens=0: want a whole number of at least 1"),
        (["seed=1.5"], "seed=1.5: want a whole number from 0 to"),
        (["optim=muon", "optim.betas=[0.9,1]"], "optim: Invalid beta parameter"),
        (["data.context=1"], "data.context=1: pico reads 2 to"),
        (["model.device=abc"], "model.device=abc: want auto, cpu, cuda, cuda:N or mps"),
        (["+eval.mine.tokens=9"], "eval.mine: nothing can be built of it, as the eval that"),
        (["+eval.mine=3"], "eval.mine: nothing can be built of it"),
        (["~callbacks", "+callbacks.checkpoint.keep=3"], "leave it out with ~callbacks.checkpoint"),
        (["+eval.mine={_target_: builtins.dict}"], "eval.mine: builtins.dict makes a dict; want a"),
        (["clip_norm=-1"], "clip_norm=-1: want a number above 0, or null"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_before_any_work(tmp_path, capsys, overrides, sentence):
    assert dictlearn_train(tmp_path, "name=wrong", *overrides) == 2
    error = capsys.readouterr().err.strip()
    assert sentence in error
    assert len(error.splitlines()) == 1, error
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.*resid_mid:UserWarning")  # NaN adds up to nothing
def test_activations_that_are_not_finite_stop_the_run_with_one_sentence(tmp_path, capsys):
    lm = load_model("pico")
    folder = tmp_path / "poisoned"
    lm.model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("nan")
    lm.model.save_pretrained(folder)
    lm.tokenizer.save_pretrained(folder)  # type: ignore
    assert dictlearn_train(tmp_path, "name=nan", "model=./poisoned", "data=stdlib") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "resid_post.1" in error and "source.nonfinite=drop" in error


def test_a_synthetic_run_needs_no_model_and_finds_what_is_true(tmp_path, capsys):
    options = [
        "source=synthetic",
        "dict.k=3",
        "dict.n_features=64",
        "steps=300",
        "model.path=no/such",
    ]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(tmp_path)
        patch.setattr(sys, "argv", ["dictlearn", "train", "name=known", "trainer=cpu", *options])
        cli.main()
    assert not exit_.value.code
    figures = json.loads((tmp_path / "runs/known/figures.json").read_text())["figures"]
    assert figures["l0"] <= 3 and figures["mean_max_cosine"] > 0.6  # random rows: 0.45
    assert dictlearn.load(tmp_path / "runs/known").width == 32
    assert "mean max cosine" in capsys.readouterr().err


def test_a_run_does_not_continue_with_another_model_or_text_behind_its_paths(tmp_path, capsys):
    model, text = tmp_path / "model", tmp_path / "text"
    shutil.copytree(PICO_PATH, model)
    text.mkdir()

    def write(wall: str) -> None:
        for i in range(40):
            said = f"{i} bottles stand on the {wall}, and {i + 1} hang. "
            (text / f"{i}.txt").write_text(said * 60)

    write("wall")
    options = ["name=own", f"model={model}", "data=text", f"data.paths=[{text}/*.txt]", "steps=2"]
    lean = ["~eval.baselines", "~eval.downstream"]
    assert dictlearn_train(tmp_path, *options, *lean) == 0
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config.replace("10000", "20000"))
    write("roof")
    longer = [*options, *lean, "steps=3", "resume=auto"]
    assert dictlearn_train(tmp_path, *longer) == 2
    assert "model.config: " in capsys.readouterr().err
    assert dictlearn_train(tmp_path, *longer, "allow_changed=[model]") == 2
    said = capsys.readouterr().err
    assert "data: " in said and "allow_changed=[model,data]" in said
    write("wall")
    assert dictlearn_train(tmp_path, *longer, "allow_changed=[model]") == 0


def test_a_damaged_file_that_the_report_would_show_ends_no_run(tmp_path, capsys):
    (tmp_path / "runs/a/features").mkdir(parents=True)
    (tmp_path / "runs/a/features/explanations.json").write_text("{")
    lean = ["~eval.baselines", "~eval.downstream"]
    assert dictlearn_train(tmp_path, "name=a", "steps=1", *lean) == 0
    shown = capsys.readouterr().err
    assert "explanations.json: not what `dictlearn explain` writes" in shown
    assert "with that mended, dictlearn report run=runs/a writes the report" in shown
    assert (tmp_path / "runs/a/figures.json").is_file()


def test_a_diverged_run_says_so_and_a_report_on_a_full_disk_ends_none(
    tmp_path, capsys, monkeypatch
):
    def full(folder: Path, record: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / "figures.json"))

    monkeypatch.setattr(evaluate, "write_record", full)
    options = ["optim.lr=300", "clip_norm=null", "steps=12", "~eval.baselines", "~eval.downstream"]
    assert dictlearn_train(tmp_path, "name=far", *options) == 1
    shown = capsys.readouterr()
    assert "figures.json'; dictlearn evaluate run=" in shown.err
    assert "The run diverged: its FVU on unseen text is" in shown.err
    table = [line for line in shown.out.splitlines() if line.startswith("SAE")]
    assert len(table) == 1 and len(table[0]) < 80 and "e+" in table[0]
    assert (tmp_path / "runs/far/dictionary/dictionary.json").is_file()
