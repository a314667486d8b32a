"""A resumed run is the run: every tensor, counter and generator, bit by bit."""

from __future__ import annotations

import errno
import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from ckpt_worker import Loader, Module, corrupt, differing, final_state, train
from lightning.pytorch import Callback, Trainer

from dictlearn import config
from dictlearn.ckpt import commit
from dictlearn.ckpt.checkpoint_io import DictlearnCheckpointIO, read_config
from dictlearn.ckpt.codec import leaves, path_text, read_state, write_state
from dictlearn.train.callbacks.checkpoint import CheckpointCallback

logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


def batches(run: Path) -> list[str]:
    return (run / "batches.txt").read_text().split()


def steps(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob("*")}


EPOCHS_BEGUN = re.compile(r"loops.fit_loop.epoch_progress.(total|current).(ready|started)")


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("cut", [1, 3, 4, 5, 7])  # an epoch is 5 batches: 5 is on its edge
def test_resume_is_bit_exact(tmp_path, cut, accumulate):
    train(tmp_path / "whole", 9, accumulate=accumulate)
    train(tmp_path / "cut", cut, accumulate=accumulate)
    train(tmp_path / "cut", 9, accumulate=accumulate, resume="auto")
    difference = differing(final_state(tmp_path / "whole", 9), final_state(tmp_path / "cut", 9))
    # Cut on an epoch's last batch, Lightning counts that epoch as begun twice. Nothing reads it.
    assert [name for name in difference if not EPOCHS_BEGUN.fullmatch(name)] == []
    assert batches(tmp_path / "whole") == batches(tmp_path / "cut")


def test_resume_after_every_step_is_bit_exact(tmp_path):
    train(tmp_path / "whole", 12)
    for stop in range(1, 13):
        train(tmp_path / "cut", stop, resume="auto")
    difference = differing(final_state(tmp_path / "whole", 12), final_state(tmp_path / "cut", 12))
    assert [name for name in difference if not EPOCHS_BEGUN.fullmatch(name)] == []
    assert batches(tmp_path / "whole") == batches(tmp_path / "cut")


def test_saving_does_not_change_the_run(tmp_path):
    train(tmp_path / "rarely", 6)
    train(tmp_path / "often", 6, every_steps=1)
    assert differing(final_state(tmp_path / "rarely", 6), final_state(tmp_path / "often", 6)) == []


# What Lightning writes and never reads, or reads only with a validation loop.
UNREAD = {
    "epoch",
    "global_step",
    "loops.fit_loop.epoch_loop.batch_progress.current.processed",
    "loops.fit_loop.epoch_loop.batch_progress.current.ready",
    "loops.fit_loop.epoch_loop.batch_progress.current.started",
    "loops.fit_loop.epoch_loop.scheduler_progress.current.completed",
    "loops.fit_loop.epoch_loop.scheduler_progress.current.ready",
    "loops.fit_loop.epoch_loop.automatic_optimization.optim_progress",
    "loops.fit_loop.epoch_loop.val_loop",
    "loops.predict_loop",
    "loops.test_loop",
    "loops.validate_loop",
    "lr_schedulers[0]._get_lr_called_within_step",
    "lr_schedulers[0]._last_lr[0]",
}


def test_resume_notices_every_state_entry(tmp_path):
    """Corrupts each entry at load: unless it is known to be unread, the run must come out other."""
    train(tmp_path / "whole", 6, every_steps=3)
    source = tmp_path / "whole" / "checkpoints" / "step-3"
    expected, saved = final_state(tmp_path / "whole", 6), final_state(tmp_path / "whole", 3)
    unnoticed = []
    for number, (path, leaf) in enumerate(leaves(saved)):
        name = path_text(path)
        if (isinstance(leaf, dict | list | tuple) and not leaf) or name.startswith(tuple(UNREAD)):
            continue
        run = tmp_path / f"corrupt-{number}"
        try:
            train(run, 6, resume=str(source), on_load=lambda state, path=path: corrupt(state, path))
        except (ValueError, RuntimeError, KeyError, TypeError, AssertionError):
            continue
        if not differing(expected, final_state(run, 6)):
            unnoticed.append(name)
    assert unnoticed == []


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"every_steps": 2, "keep": 9}, {2, 4, 6, 7}),
        ({"every_steps": 2, "keep": 1}, {7}),
        ({"every_steps": 1, "keep": 2, "pin_every": 3}, {3, 6, 7}),
        ({"every_steps": None, "keep": 2}, {7}),
        ({"every_steps": None, "every_minutes": 1e-9, "keep": 3}, {5, 6, 7}),
        ({"every_steps": 3, "every_minutes": 60, "keep": 3}, {3, 6, 7}),
    ],
    ids=str,
)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_saves_on_optimiser_steps_and_keeps_what_it_should(tmp_path, options, kept, accumulate):
    train(tmp_path, 7, accumulate=accumulate, **options)
    assert steps(tmp_path) == {"LATEST"} | {f"step-{step}" for step in kept}
    assert commit.read_latest(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "step-7"


def test_saves_before_the_trainer_stops_early(tmp_path):
    class StopAt(Callback):
        def on_train_batch_end(self, trainer, *rest):
            trainer.should_stop = trainer.global_step == 3

    train(tmp_path / "cut", 8, callbacks=(StopAt(),))
    assert steps(tmp_path / "cut") == {"LATEST", "step-3"}
    train(tmp_path / "cut", 8, resume="auto")
    train(tmp_path / "whole", 8)
    assert differing(final_state(tmp_path / "whole", 8), final_state(tmp_path / "cut", 8)) == []


def test_the_checkpoint_says_what_made_it(tmp_path):
    train(tmp_path, 2)
    folder = tmp_path / "checkpoints" / "step-2"
    assert read_config(folder) == {"steps": 2}
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["step"] == 2 and len(manifest["config_sha256"]) == 64
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["torch"] == torch.__version__ and "git" in environment


def full_disk(monkeypatch, at: set[str]) -> None:
    """The disk has no room for the checkpoints of these names."""

    def write(folder: Path, state: dict) -> None:
        write_state(folder, state)
        if any(folder.name.startswith(f"{name}.tmp") for name in at):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("dictlearn.ckpt.checkpoint_io.write_state", write)


def failures(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the checkpoint callback said of saves that failed."""
    return [line for line in capsys.readouterr().err.splitlines() if "Training goes on" in line]


def test_a_full_disk_is_said_counted_and_trained_through(tmp_path, monkeypatch, capsys):
    train(tmp_path / "whole", 8, every_steps=2)
    full_disk(monkeypatch, {"step-4", "step-6"})
    trainer = train(tmp_path / "full", 8, every_steps=2, keep=2)
    said = [re.findall(r"step-\d+", line) for line in failures(capsys)]
    assert said == [["step-4"], ["step-6"]]
    assert trainer.callback_metrics["checkpoint/failed"] == 2
    assert steps(tmp_path / "full") == {"LATEST", "step-2", "step-8"}
    assert differing(final_state(tmp_path / "whole", 8), final_state(tmp_path / "full", 8)) == []


def test_the_last_save_is_tried_again_when_training_ends(tmp_path, monkeypatch, capsys):
    full_disk(monkeypatch, {"step-4"})
    trainer = train(tmp_path, 4, every_steps=2)
    assert len(failures(capsys)) == 2
    assert trainer.global_step == 4
    assert (
        commit.find_intact(tmp_path / "checkpoints").newest == tmp_path / "checkpoints" / "step-2"
    )


def test_a_full_disk_may_stop_the_run(tmp_path, monkeypatch):
    full_disk(monkeypatch, {"step-4"})
    with pytest.raises(OSError, match=r"cannot save .*step-4: No space left on device"):
        train(tmp_path, 8, every_steps=2, on_error="raise")
    assert steps(tmp_path) == {"LATEST", "step-2"}


def test_a_state_that_could_not_be_read_back_is_refused_when_saved(tmp_path):
    class Careless(Callback):
        def state_dict(self):
            return {"seen": {1, 2}}

    with pytest.raises(TypeError, match=r"callbacks\..*Careless\.seen is a builtins.set"):
        train(tmp_path, 2, callbacks=(Careless(),))
    assert steps(tmp_path) == set()


@pytest.mark.parametrize("change", ["extra", "missing", "shape"])
def test_a_tensor_that_does_not_fit_the_module_is_named(tmp_path, change):
    train(tmp_path, 2)

    def edit(state: dict) -> dict:
        weights = dict(state["state_dict"])
        if change == "extra":
            weights["layer.other"] = torch.zeros(1)
        elif change == "missing":
            del weights["layer.weight"]
        else:
            weights["layer.weight"] = torch.zeros(4, 5)
        return {**state, "state_dict": weights}

    with pytest.raises(RuntimeError, match=r"layer\.(other|weight)"):
        train(tmp_path, 4, resume="auto", on_load=edit)


def test_a_state_that_is_not_lightnings_is_one_sentence(tmp_path):
    train(tmp_path, 2)
    folder = tmp_path / "checkpoints" / "step-2"
    state = read_state(folder)
    del state["pytorch-lightning_version"]
    shutil.rmtree(folder)
    commit.commit(folder, lambda path: write_state(path, state), sort="a checkpoint")
    with pytest.raises(ValueError, match="step-2: its state has no pytorch-lightning_version"):
        train(tmp_path, 4, resume="auto")


def test_garbage_is_collected_at_start(tmp_path):
    (tmp_path / "checkpoints" / f"step-1.tmp-{10**30}").mkdir(parents=True)
    train(tmp_path, 2)
    assert steps(tmp_path) == {"LATEST", "step-2"}


def test_another_number_of_processes_draws_numbers_of_its_own(tmp_path):
    train(tmp_path, 2)
    train(tmp_path, 3, resume="auto")
    same = final_state(tmp_path, 3)["rng"][0]["torch"]
    commit.delete(tmp_path / "checkpoints/step-3")
    train(tmp_path, 3, resume="auto", on_load=lambda state: {**state, "rng": state["rng"] * 2})
    state = final_state(tmp_path, 3)["rng"]
    assert len(state) == 1 and not torch.equal(state[0]["torch"], same)


def test_pickles_are_never_written(tmp_path):
    trainer = Trainer(
        accelerator="cpu", max_steps=1, logger=False, callbacks=[CheckpointCallback(tmp_path / "x")]
    )
    with pytest.raises(ValueError, match=r"plugins=\[DictlearnCheckpointIO\(config\)\]"):
        trainer.fit(Module(), Loader(tmp_path / "log"))


@pytest.mark.parametrize(
    "options",
    [
        {"every_steps": 0},
        {"every_minutes": -1.0},
        {"keep": 0},
        {"pin_every": 0},
        {"on_error": "ignore"},
    ],
    ids=str,
)
def test_options_out_of_range_are_named(options):
    ((key, value),) = options.items()
    with pytest.raises(ValueError, match=f"callbacks.checkpoint.{key}={value}: want "):
        config.compose("train", [f"callbacks.checkpoint.{key}={value}"])


def test_lightning_removes_a_folder_through_the_plugin(tmp_path):
    train(tmp_path, 2)
    DictlearnCheckpointIO().remove_checkpoint(tmp_path / "checkpoints" / "step-2")
    assert steps(tmp_path) == {"LATEST"}
