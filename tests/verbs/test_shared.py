"""hydra/launcher=shared: one forward pass for many runs, and each comes out as it would alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dictlearn import cli, config
from dictlearn.activations.formats.dictlearn import Store
from dictlearn.evals import evaluation, observe
from dictlearn.lm.language_model import LanguageModel
from dictlearn.sources.reader import Reader, Reading
from dictlearn.train.callbacks import signals
from dictlearn.train.module import DictionaryTraining
from dictlearn.verbs import costs, evaluate, plan, shared, train
from dictlearn.verbs.turns import Turns
from tests.lines import settled
from tests.peak import Peak

SMALL = [
    "steps=6",
    "batch_tokens=256",
    "source.buffer_tokens=2048",
    "source.lm_batch_windows=4",
    "data.context=128",
    "data.max_tokens=20000",
    "dict.n_features=64",
    "dict.k=8",
    "eval_tokens=512",
    "trainer.log_every_n_steps=2",
    "callbacks.checkpoint.every_steps=3",
    "trainer=cpu",
    *("~eval.baselines", "~eval.downstream", "~eval.geometry", "~eval.jacobian"),
    *("~eval.replacement", "~eval.decoder_norms", "~eval.prefixes"),
]
TOGETHER = ["-m", "hydra/launcher=shared"]
KINDS = ["dict=sae,crosscoder,clt", "sparsity=batchtopk,jumprelu"]


@pytest.fixture(autouse=True, scope="module")
def _no_reports() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "write_report_of", lambda folder: None)
        yield


def dictlearn_train(
    folder: Path, *overrides: str, verb: str = "train", without: Collection[str] = ()
) -> int:
    """Exit status of `dictlearn train ...` in `folder`, `without` some of the small settings."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(folder)
        options = [text for text in overrides if text.startswith("-")]
        small = [text for text in SMALL if text not in without]
        texts = settled(*small, *(text for text in overrides if text not in options))
        patch.setattr(sys, "argv", ["dictlearn", verb, *options, *texts])
        cli.main()
    return exit_.value.code or 0  # type: ignore[return-value]


def differences(one: Path, other: Path) -> list[str]:
    """The files of two runs that differ, times and names apart."""
    files = {path.relative_to(one) for path in one.rglob("*") if path.is_file()}
    assert files == {path.relative_to(other) for path in other.rglob("*") if path.is_file()}
    timed = {"config.yaml", "config.json", "manifest.json", "figures.json", "metrics.csv"}
    differing = []
    for file in files - {path for path in files if path.name in timed}:
        mine, theirs = (one / file).read_bytes(), (other / file).read_bytes()
        if file.name == "metrics.jsonl":
            mine, theirs = (_untimed(text) for text in (mine, theirs))
        if mine != theirs:
            differing.append(str(file))
    figures = [json.loads((run / "figures.json").read_text())["figures"] for run in (one, other)]
    return differing + ["figures.json"] * (figures[0] != figures[1])


def _untimed(rows: bytes) -> bytes:
    return re.sub(rb', "tokens_per_second": [\d.e+-]+', b"", rows)


@pytest.fixture(scope="module")
def reads() -> Iterator[list[int]]:
    """For each time that a source has had the model read, how many windows its text has."""
    seen: list[int] = []
    original = Reader.read

    def read(self: Reader, *args: Any, **kwargs: Any) -> Reading:
        seen.append(len(self._windows))
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "read", read)
        yield seen


@pytest.fixture(scope="module")
def group(tmp_path_factory, reads) -> tuple[Path, list[int]]:
    """A multirun's folder, and what it read."""
    folder = tmp_path_factory.mktemp("shared")
    before = len(reads)
    assert dictlearn_train(folder, *TOGETHER, "name=group", *KINDS) == 0
    return folder / "runs" / "group", reads[before:]


@pytest.mark.parametrize("sparsity", ["batchtopk", "jumprelu"])
@pytest.mark.parametrize("kind", ["sae", "crosscoder", "clt"])
def test_a_run_comes_out_bit_for_bit_as_alone(group, tmp_path, kind, sparsity):
    assert dictlearn_train(tmp_path, "name=alone", f"dict={kind}", f"sparsity={sparsity}") == 0
    together = group[0] / f"dict={kind},sparsity={sparsity}"
    assert differences(tmp_path / "runs" / "alone", together) == []


def test_the_model_reads_the_text_once_for_all(group, tmp_path, reads):
    before = len(reads)
    assert dictlearn_train(tmp_path, "name=alone") == 0
    alone, train = reads[before:], min(reads)  # there are more windows of held-out text
    assert group[1].count(train) == alone.count(train) > 0


def test_runs_share_one_read_of_a_store(tmp_path, monkeypatch):
    store = ["sites=[resid_post.0,resid_post.1,resid_post.2]", "output=store", "tokens=8000"]
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit_:
        patch.chdir(tmp_path)
        text = [text for text in SMALL if text.startswith("data.")]
        patch.setattr(sys, "argv", ["dictlearn", "cache", *store, *text, "shard_tokens=2000"])
        cli.main()
    assert not exit_.value.code
    opened: list[int] = []
    original = Store.shard

    def shard(self: Store, number: int, sites: Any) -> Any:
        opened.append(number)
        return original(self, number, sites)

    monkeypatch.setattr(Store, "shard", shard)
    cached = ["source=cache", "source.path=store"]
    own = [text for text in SMALL if text.startswith("source.")]
    assert dictlearn_train(tmp_path, *cached, "name=alone", "dict.layer=2", without=own) == 0
    alone = opened.copy()
    opened.clear()
    layers = ["dict.layer=0,1,2", "name=group"]
    assert dictlearn_train(tmp_path, *TOGETHER, *cached, *layers, without=own) == 0
    assert sorted(opened) == sorted(alone) != []
    together = tmp_path / "runs" / "group" / "dict.layer=2"
    assert differences(tmp_path / "runs" / "alone", together) == []


def test_runs_of_different_lengths_are_evaluated_together(tmp_path, monkeypatch):
    passes: list[int] = []
    original = observe.batch_at

    def batch_at(lm: LanguageModel, tokens_BP: torch.Tensor, *args: Any) -> Any:
        passes.append(len(tokens_BP))
        return original(lm, tokens_BP, *args)

    monkeypatch.setattr(observe, "batch_at", batch_at)
    assert dictlearn_train(tmp_path, "name=alone", "steps=4") == 0
    alone = passes.copy()
    passes.clear()
    assert dictlearn_train(tmp_path, *TOGETHER, "name=group", "steps=4,9,6") == 0
    assert passes == alone != []
    together = tmp_path / "runs" / "group" / "steps=4"
    assert differences(tmp_path / "runs" / "alone", together) == []


def test_a_multirun_ends_in_its_table(group):
    assert (group[0] / "sweep.html").is_file()


def test_runs_with_mistakes_and_runs_that_fail_end_alone(tmp_path, capsys):
    values = ["dict.layer=1,99", "optim.lr=1e-3,1e30"]
    assert dictlearn_train(tmp_path, *TOGETHER, "name=group", *values, "steps=14") == 2
    said = capsys.readouterr().err
    reasons = ("dict.layer=99: pico has layers 0 to 3", "10 steps in a row had a loss or gradient")
    page = (tmp_path / "runs" / "group" / "sweep.html").read_text()
    for reason, times in zip(reasons, (2, 1), strict=True):
        assert said.count(f"failed: {reason}") == page.count(f"failed: {reason}") == times
        assert said.count(reason) == 2 * times  # when it failed, and at the end
    assert "runs 0, 1: one stream, resid_post.1 of pico" in said
    assert dictlearn_train(tmp_path, "name=alone", "optim.lr=1e-3", "steps=14") == 0
    good = tmp_path / "runs" / "group" / "dict.layer=1,optim.lr=0.001"
    assert differences(tmp_path / "runs" / "alone", good) == []


def test_an_error_in_one_runs_step_leaves_the_others_alone(tmp_path, capsys, monkeypatch):
    step = DictionaryTraining.training_step

    def fails(self: DictionaryTraining, batch, batch_idx):
        if self.trainer.global_step == 2 and "dict.k=4" in self.trainer.default_root_dir:
            raise RuntimeError("no memory")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DictionaryTraining, "training_step", fails)
    assert dictlearn_train(tmp_path, *TOGETHER, "name=group", "dict.k=4,8") == 1
    assert "Left out: dict.k=4 failed: run 0: RuntimeError: no memory\n" in capsys.readouterr().err
    assert (tmp_path / "runs/group/dict.k=8/dictionary/dictionary.json").is_file()
    assert not (tmp_path / "runs/group/dict.k=4/dictionary").exists()


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    assert dictlearn_train(folder, *TOGETHER, "name=pair", "dict.layer=0,1") == 0
    return folder / "runs" / "pair"


def test_a_signal_saves_all_and_each_goes_on_to_the_same_bits(pair, tmp_path, capsys, monkeypatch):
    step = DictionaryTraining.training_step

    def signalled(self: DictionaryTraining, batch, batch_idx):
        if self.trainer.global_step == 3 and "layer=1" in self.trainer.default_root_dir:
            os.kill(os.getpid(), signal.SIGTERM)
            while signals.asked() is None:
                time.sleep(0.01)
        return step(self, batch, batch_idx)

    names = ["name=pair", "dict.layer=0,1"]
    with monkeypatch.context() as patch:
        patch.setattr(DictionaryTraining, "training_step", signalled)
        assert dictlearn_train(tmp_path, *TOGETHER, *names) == 143
    said = capsys.readouterr().err
    assert re.search(
        r"stopped by SIGTERM; to go on with all of them: .* resume=auto name=pair\n", said
    )
    runs = [tmp_path / "runs" / "pair" / f"dict.layer={layer}" for layer in (0, 1)]
    saved = [max(int(p.name[5:]) for p in run.glob("checkpoints/step-*")) for run in runs]
    assert saved == [5, 4]  # the first had taken its fourth step before the signal came
    shutil.copytree(runs[1], tmp_path / "runs" / "copy")

    assert dictlearn_train(tmp_path, *TOGETHER, *names, "resume=auto") == 0
    for run in runs:
        final = [folder / "checkpoints" / "step-6" for folder in (run, pair / run.name)]
        tensors = [load_file(folder / "tensors.safetensors") for folder in final]
        assert all(torch.equal(value, tensors[1][key]) for key, value in tensors[0].items())
        rows = [(folder / "metrics.jsonl").read_bytes() for folder in (run, pair / run.name)]
        assert _untimed(rows[0]) == _untimed(rows[1])

    alone = ["resume=auto", "name=copy", "dict.layer=1"]  # one of them, without the others
    assert dictlearn_train(tmp_path, *alone) == 0
    final = [
        folder / "dictionary" / "dictionary.safetensors"
        for folder in (runs[1], tmp_path / "runs" / "copy")
    ]
    assert final[0].read_bytes() == final[1].read_bytes()


def test_a_signal_during_the_evaluation_loses_nothing(tmp_path, capsys, monkeypatch):
    seen: list[int] = []
    original = evaluation.observe_tokens

    def signalled(*args: Any) -> Any:
        seen.append(1)
        if len(seen) == 2:  # the second run's
            os.kill(os.getpid(), signal.SIGINT)
            while signals.asked() is None:
                time.sleep(0.01)
        return original(*args)

    names = ["name=group", "dict.k=2,4,8"]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "observe_tokens", signalled)
        assert dictlearn_train(tmp_path, *TOGETHER, *names) == 130
    assert "stopped by SIGINT; to go on with all of them" in capsys.readouterr().err
    folder = tmp_path / "runs" / "group"
    assert not (folder / "dict.k=8" / "figures.json").exists()
    assert not (folder / "sweep.html").exists()
    assert dictlearn_train(tmp_path, *TOGETHER, *names, "resume=auto") == 0
    assert len(list(folder.glob("*/figures.json"))) == 3
    assert (folder / "sweep.html").read_text().count('<tr data-run="') == 3


def test_runs_are_grouped_by_what_makes_their_stream(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plan, "main", lambda cfg: 0)

    def planned(*overrides: str) -> str:
        """What is said of the groups of a plan."""
        dictlearn_train(tmp_path, *TOGETHER, "name=plan", *overrides, verb="plan")
        return capsys.readouterr().err

    said = planned("seed=0,1", "data_seed=0", "dict.layer=0,1", "batch_tokens=256,128")
    assert "runs 0 to 3: one stream, resid_post.0, resid_post.1 of pico" in said
    assert re.search(r"runs 0 to 3: [\d.]+ MB together, of ", said)
    assert "runs 4 to 7: one stream" in said
    assert "not with run 0: batch_tokens is 128, not 256" in said
    said = planned("seed=0,1")
    assert "run 1: a stream of its own" in said and "data_seed is 1, not 0" in said
    said = planned("dict.layer=0,1", "source.nonfinite=drop")
    assert "source.nonfinite=drop, is resid_post.1, not resid_post.0" in said
    said = planned("dict.layer=0,1", "gpu=H200", "trainer=gpu")  # which isn't here
    assert re.search(r"runs 0, 1: [\d.]+ MB together, of 147 GB", said)


def test_a_group_that_does_not_fit_is_refused(tmp_path, capsys, monkeypatch):
    sizes = {1: 10.0, 2: 20.0, 3: 1e18}
    monkeypatch.setattr(shared.costs, "memory_together", lambda runs, on_gpu: sizes[len(runs)])
    assert dictlearn_train(tmp_path, *TOGETHER, "name=group", "dict.k=2,4,8") == 2
    assert "hydra.launcher.most=2 fits" in capsys.readouterr().err
    assert not list((tmp_path / "runs" / "group").glob("dict*"))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["hydra/launcher=shared"],
            "hydra/launcher=shared: launches several runs; want -m with it",
        ),
        (
            [*TOGETHER, "hydra.launcher.most=0", "dict.k=4,8"],
            "hydra.launcher.most=0: want at least 1",
        ),
        (
            [*TOGETHER, "dict.k=4,4"],
            "group/dict.k=4: comes twice in this multirun; want each run once",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path, capsys, overrides, sentence):
    assert dictlearn_train(tmp_path, "name=group", *overrides) == 2
    assert sentence in capsys.readouterr().err


def test_a_group_has_one_model_and_everybodys_weights():
    runs = [
        shared.sizes(config.compose("train", ["name=x", f"dict.layer={layer}", "trainer=cpu"]))
        for layer in (0, 1)
    ]
    one = costs.memory(runs[0], on_gpu=False)
    alone, same = (costs.memory_together(runs[:1] * n, on_gpu=False) for n in (1, 2))
    assert alone == pytest.approx(one.peak + one.parts["batch"])
    assert same - alone == pytest.approx(one.parts["weights"] + one.parts["optimiser"])
    other_site = costs.memory_together(runs, on_gpu=False) - same
    assert other_site == pytest.approx(one.parts["batch"] + one.parts["shuffle buffer"])


@pytest.mark.parametrize("values", ["dict.layer=0,1,2,3", "dict=sae,clt"])
def test_the_memory_of_a_group(values, tmp_path, monkeypatch):
    """What is said of a group is what its tensors take, from its first activations to its last step."""
    peak, said, models, most = Peak(), [], [], []

    def told(called: Callable[..., Any], results: list[Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            results.append(called(*args))
            return results[-1]

        return call

    def turns(works: Sequence[Callable[[], None]]) -> Turns:
        return Turns([partial(within_peak, work) for work in works])

    def within_peak(work: Callable[[], None]) -> None:
        with peak:  # each thread has its own stack of modes
            work()

    def finished(*args: Any) -> dict[str, float]:
        most.append(peak.most)  # the first run to get here; the others have a step before them
        return {}

    monkeypatch.setattr(shared, "Turns", turns)
    monkeypatch.setattr(costs, "memory_together", told(costs.memory_together, said))
    monkeypatch.setattr(train, "loaded", told(train.loaded, models))
    monkeypatch.setattr(train, "finish", finished)
    full = [
        "dict.n_features=64",
        "dict.k=8",
        "batch_tokens=256",
        "callbacks.checkpoint.every_steps=3",
    ]
    options = ["name=group", values, "callbacks=null", "logger=null", "dead_after=1000000000"]
    assert dictlearn_train(tmp_path, *TOGETHER, *options, without=full) == 0
    storages = [parameter.untyped_storage() for parameter in models[0].model.parameters()]
    model = {one._cdata: one.nbytes() for one in storages if one._cdata not in peak.seen}
    measured = most[0] + sum(model.values())
    assert said[0] == pytest.approx(measured, rel=0.12)
