"""A checkpoint is loaded only if this run could have written it, whatever its manifest says."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

from dictlearn.ckpt.checkpoint_io import DictlearnCheckpointIO
from dictlearn.ckpt.codec import leaves, path_text, read_state
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.objectives.objective import Objective
from dictlearn.objectives.reconstruction import Reconstruction
from dictlearn.sources.synthetic import SyntheticSource
from dictlearn.train.callbacks.checkpoint import CheckpointCallback
from dictlearn.train.callbacks.ema import EMACallback
from dictlearn.train.fused_adam import FusedAdam
from dictlearn.train.loader import SourceLoader
from dictlearn.train.module import DictionaryTraining
from dictlearn.train.muon import Muon
from dictlearn.train.schedules import Trapezoid
from dictlearn.train.signum import Signum
from dictlearn.train.trainee import Trainee
from tests.dictionaries import SPARSITIES

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

OPTIMISERS = {
    **{
        f"adam {form}": partial(FusedAdam, moments=form) for form in ("float32", "bfloat16", "8bit")
    },
    "torch's Adam": partial(torch.optim.Adam, lr=1e-3),
    "muon": Muon,
    "signum": Signum,
}
Edit = Callable[[dict[str, Any]], dict[str, Any]]


def train(
    folder: Path, steps: int, optimiser: Any, edit: Edit | None = None, averaged: bool = False
) -> None:
    """To `steps`, from the checkpoint of step 3, as `edit` leaves it, where there is an edit."""
    source = SyntheticSource(batch_tokens=32, seed=0, n_features=8, width=8)
    site = ("resid_post.1",)
    torch.manual_seed(0)
    dictionary = Dictionary(
        Shape("sae", site, site, width=8, n_features=16, k=4, centre=True), SPARSITIES["jumprelu"]
    )
    trainee = Trainee(dictionary, Objective({"mse": Reconstruction()}), "none", 1000)
    training = DictionaryTraining({"dictionary": trainee}, optimiser, Trapezoid(), 6)
    callbacks = [CheckpointCallback(folder / "checkpoints", every_steps=3, keep=9)]
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, *([EMACallback()] if averaged else [])],
        plugins=[DictlearnCheckpointIO({}, edit)],
    )
    resume = folder / "checkpoints/step-3" if edit else None
    trainer.fit(training, SourceLoader(source, 6), ckpt_path=resume)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Callable[..., Path]:
    made: dict[tuple[str, bool], Path] = {}

    def folder(name: str, averaged: bool = False) -> Path:
        if (name, averaged) not in made:
            made[name, averaged] = tmp_path_factory.mktemp("saved")
            train(made[name, averaged], 3, OPTIMISERS[name], averaged=averaged)
        return made[name, averaged]

    return folder


def refused(saved: Callable[..., Path], name: str, edit: Edit, averaged: bool = False) -> str:
    """The one sentence that a resume ends in."""

    def edited(state: dict[str, Any]) -> dict[str, Any]:
        return edit(copy.deepcopy(state))

    with pytest.raises(ValueError) as error:
        train(saved(name, averaged), 6, OPTIMISERS[name], edited, averaged)
    assert "\n" not in str(error.value)
    return str(error.value)


def at(state: Any, path: tuple) -> Any:
    for key in path:
        state = state[key]
    return state


def put(path: tuple, value: Any) -> Edit:
    def edit(state: dict[str, Any]) -> dict[str, Any]:
        at(state, path[:-1])[path[-1]] = value
        return state

    return edit


def drop(path: tuple) -> Edit:
    def edit(state: dict[str, Any]) -> dict[str, Any]:
        del at(state, path[:-1])[path[-1]]
        return state

    return edit


def is_moment(path: tuple, leaf: Any) -> bool:
    return path[0] == "optimizer_states" and isinstance(leaf, Tensor) and leaf.numel() > 1


@pytest.mark.parametrize("name", OPTIMISERS)
def test_what_was_saved_goes_on(saved, name):
    train(saved(name), 6, OPTIMISERS[name], lambda state: state)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_moments_of_another_shape_are_refused(saved, name):
    """torch loads them, and a compiled loop would write past their end."""
    state = read_state(saved(name) / "checkpoints/step-3")
    moments = [(path, leaf) for path, leaf in leaves(state) if is_moment(path, leaf)]
    assert len(moments) >= 4
    for path, leaf in moments[:: max(1, len(moments) // 4)]:
        text = refused(saved, name, put(path, torch.cat([leaf, leaf], -1)))
        assert path_text(path) in text and "shape" in text


@pytest.mark.parametrize("averaged", [False, True], ids=["", "averaged"])
def test_no_tensor_of_another_shape_dtype_or_name_or_with_nan_is_loaded(saved, averaged):
    state = read_state(saved("adam float32", averaged) / "checkpoints/step-3")
    tensors = [(p, x) for p, x in leaves(state) if isinstance(x, Tensor) and p[0] != "rng"]
    assert {p[0] for p, _ in tensors} >= {"state_dict", "optimizer_states"}
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "shape": lambda x: torch.stack([x, x]),
        "dtype": lambda x: x.bool(),
        "not finite": lambda x: torch.full_like(x, torch.nan),
    }
    for number, (path, tensor) in enumerate(tensors):
        for what, change in list(changes.items())[number % 3 :][:1]:
            if what == "not finite" and not tensor.is_floating_point():
                continue
            text = refused(saved, "adam float32", put(path, change(tensor)), averaged)
            assert path_text(path) in text and what in text, (path, what, text)
        if number % 5 == 0:
            assert "missing" in refused(saved, "adam float32", drop(path), averaged)


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (drop(("loops",)), "loops is missing"),
        (drop(("loops", "fit_loop")), "loops.fit_loop is missing"),
        (drop(("loops", "fit_loop", "epoch_loop.batch_progress")), "batch_progress is missing"),
        (drop(("loops", "fit_loop", "state_dict", "combined_loader")), "combined_loader is missing"),
        (drop(("optimizer_states",)), "optimizer_states is missing"),
        (put(("optimizer_states",), []), "optimizer_states is a list of 0"),
        (drop(("lr_schedulers",)), "lr_schedulers is missing"),
        (drop(("lr_schedulers", 0, "last_epoch")), "last_epoch is missing"),
        (put(("lr_schedulers", 0, "last_epoch"), "2"), "last_epoch is '2', want a whole number"),
        (put(("lr_schedulers", 0, "last_epoch"), -7), "last_epoch is -7"),
        (put(("callbacks",), -1), "callbacks is -1, want a dict"),
        (put(("optimizer_states", 0, "state"), {}), "knows 0 parameters"),
        (drop(("optimizer_states", 0, "state", 1)), "knows 4 parameters, optimizer_entries is 5"),
        (drop(("optimizer_states", 0, "state", 1, "step")), "state[1].step is missing"),
        (put(("optimizer_states", 0, "param_groups", 0, "eps"), 1e-2), "eps is 0.01, want 1e-08"),
        (put(("optimizer_states", 0, "param_groups", 0, "lr"), 2.5), "optimizer_states[0].lr"),
        (put(("lr_schedulers", 0, "base_lrs"), [2.5, 1e-3]), "base_lrs"),
        (put(("global_step",), 2), "count 3 steps, global_step 2"),
        (put(("state_dict", "other"), torch.zeros(2)), "state_dict.other is unknown here"),
        (put(("optimizer_states", 0, "state", 77), {}), "belongs to none of"),
        (put(("optimizer_states", 0, "param_groups", 0, "params"), [0]), "params"),
        (put(("optimizer_states", 0, "param_groups", 0, "lr"), float("nan")), "not finite"),
        (put(("current_model_state",), {}), "which only callbacks=ema writes"),
        (put(("rng", 0, "numpy", "position"), 10**6), "random number states cannot be set"),
        (put(("rng", 0, "numpy", "has_gauss"), 10**30), "random number states cannot be set"),
        (
            put(("loops", "fit_loop", "state_dict", "combined_loader", 0), {}),
            "no state of a source",
        ),
        (
            put(
                ("loops", "fit_loop", "state_dict", "combined_loader", 0, "sources"),
                [{"position": -1, "seed": 0}],
            ),
            "position=-1",
        ),
    ],
)  # fmt: skip
def test_what_no_run_writes_is_one_sentence(saved, edit, text):
    assert text in refused(saved, "adam float32", edit)


def test_the_average_of_the_weights_belongs_to_the_run(saved):
    folder = saved("adam float32", True)
    with pytest.raises(ValueError, match=r"_state is there, which only callbacks=ema writes"):
        train(folder, 6, OPTIMISERS["adam float32"], lambda state: state)
    with pytest.raises(ValueError, match=r"current_model_state is missing"):
        train(saved("adam float32"), 6, OPTIMISERS["adam float32"], lambda state: state, True)


@pytest.mark.parametrize("name", ["muon", "signum", "torch's Adam"])
def test_what_any_optimiser_stores_is_known_by_name_and_type(saved, name):
    state = read_state(saved(name) / "checkpoints/step-3")
    moments = [(path, leaf) for path, leaf in leaves(state) if is_moment(path, leaf)]
    path, moment = moments[-1]
    assert "missing" in refused(saved, name, drop(path))
    assert "want a tensor" in refused(saved, name, put(path, -1))
    assert "dtype" in refused(saved, name, put(path, moment.double()))
    assert "unknown here" in refused(saved, name, put((*path[:-1], "more"), moment))
