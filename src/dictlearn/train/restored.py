"""Refuses checkpoints that this run could not have written, before any of them is loaded.

A manifest says that files are unchanged, not that a run like this one saved them. Lightning and torch
load every entry whose name fits, moments of any shape included, and go on from step 0 if the count of
steps is missing.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from dictlearn.ckpt.codec import leaves, path_text
from dictlearn.train.groups import parameter_groups
from dictlearn.train.signum import Signum
from dictlearn.words import a

Path = tuple[str | int, ...]
Optimiser = Callable[
    [list[dict[str, Any]]], tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR]
]

ENTRIES_OF_OPTIMISER = "optimizer_entries"  # the number of the optimiser's states
# The sizes of a stand-in for a parameter. They differ, so that a state's dimensions can be told apart.
SIZES = (2, 3, 5, 7)

# Entries that Lightning and CheckpointCallback write for every run.
ENTRIES = {
    "state_dict": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "global_step": int,
    "callbacks": dict,
    "rng": list,
    ENTRIES_OF_OPTIMISER: int,
}
# Further entries that it writes if the weights are averaged.
AVERAGING = {"current_model_state": dict, "averaging_state": dict}


@runtime_checkable
class Composed(Protocol):
    """An optimiser made of others, whose states lie under `inner` by their names."""

    inner: Mapping[str, torch.optim.Optimizer]


class _Unfit(ValueError):
    pass


def note_entries(checkpoint: dict[str, Any]) -> None:
    """Adds the number of optimiser states to a checkpoint, so that missing moments are noticed."""
    checkpoint[ENTRIES_OF_OPTIMISER] = sum(map(_entries, checkpoint["optimizer_states"]))


def refuse_unfit(
    checkpoint: Mapping[str, Any], module: Any, optimiser: Optimiser, where: object
) -> None:
    """Compares a checkpoint that was read from `where` with what this run holds.

    Args:
        module: the LightningModule, with its trainer.
        optimiser: builds (optimiser, learning-rate schedule) over groups of parameters.

    Raises:
        ValueError: one sentence that names the first entry of another name, type, shape or dtype, or
            with a number that is not finite.
    """
    try:
        _check(checkpoint, module, optimiser)
    except _Unfit as problem:
        raise ValueError(
            f"resume={where}: the checkpoint is not one of this run: {problem}"
        ) from None


def _check(checkpoint: Mapping[str, Any], module: Any, build: Optimiser) -> None:
    averaged = any(isinstance(c, WeightAveraging) for c in module.trainer.callbacks)
    for name, kind in (ENTRIES | (AVERAGING if averaged else {})).items():
        if not isinstance(checkpoint.get(name), kind):
            raise _Unfit(f"{name} is {_shown(checkpoint.get(name))}, want {a(kind.__name__)}")
    if not averaged and (extra := sorted(AVERAGING.keys() & checkpoint.keys())):
        raise _Unfit(f"{extra[0]} is there, which only callbacks=ema writes")
    for path, leaf in leaves(dict(checkpoint)):
        _refuse_nonfinite(path, leaf)
    for name in ("state_dict", *(["current_model_state"] if averaged else [])):
        _same_tensors((name,), checkpoint[name], module.state_dict())
    if averaged:
        counted = {"n_averaged": torch.zeros((), dtype=torch.int64)}
        _same_tensors(("averaging_state",), checkpoint["averaging_state"], counted)
        step = {"EMACallback": {"latest_update_step": 0}}
        _same_form(("callbacks",), checkpoint.get("callbacks"), step)
    _check_progress(checkpoint, module.trainer)
    _same_length(("optimizer_states",), checkpoint["optimizer_states"], 1)
    _same_length(("lr_schedulers",), checkpoint["lr_schedulers"], 1)
    optimiser, schedule = build(parameter_groups(module))
    path, (state,) = ("lr_schedulers", 0), checkpoint["lr_schedulers"]
    _same_form(path, state, schedule.state_dict())
    _same_value((*path, "base_lrs"), state["base_lrs"], schedule.base_lrs)
    names = {id(p): name for name, p in module.named_parameters()}
    expected = _Expected(build, optimiser, parameter_groups(module), names)
    path, (state,) = ("optimizer_states", 0), checkpoint["optimizer_states"]
    expected.check(path, state)
    lrs = [group["lr"] for group in state["param_groups"]]
    _same_value((*path, "lr"), lrs, checkpoint["lr_schedulers"][0]["_last_lr"])
    if (n := _entries(state)) != checkpoint[ENTRIES_OF_OPTIMISER]:
        wanted = checkpoint[ENTRIES_OF_OPTIMISER]
        raise _Unfit(f"its optimiser knows {n} parameters, {ENTRIES_OF_OPTIMISER} is {wanted}")


def _refuse_nonfinite(path: Path, leaf: Any) -> None:
    if isinstance(leaf, np.ndarray | np.generic):
        finite = leaf.dtype.kind not in "fc" or bool(np.isfinite(leaf).all())
    elif isinstance(leaf, Tensor):
        finite = not leaf.is_floating_point() or bool(leaf.isfinite().all())
    else:
        finite = not isinstance(leaf, float) or math.isfinite(leaf)
    if not finite:
        raise _Unfit(f"{path_text(path)} has numbers that are not finite")


def _same_tensors(path: Path, saved: Any, wanted: Mapping[str, Any]) -> None:
    _same_keys(path, saved, wanted)
    for name, tensor in wanted.items():
        if isinstance(tensor, Tensor):
            _same_tensor((*path, name), saved[name], tensor)
        else:
            _same_form((*path, name), saved[name], tensor)


def _same_tensor(path: Path, saved: Any, wanted: Tensor, owner: str = "") -> None:
    if not isinstance(saved, Tensor):
        raise _Unfit(f"{path_text(path)}{owner} is {_shown(saved)}, want a tensor")
    for what, there, here in (
        ("shape", list(saved.shape), list(wanted.shape)),
        ("dtype", saved.dtype, wanted.dtype),
    ):
        if there != here:
            raise _Unfit(f"{path_text(path)}{owner} has the {what} {there}, want {here}")


def _same_form(path: Path, saved: Any, wanted: Any) -> None:
    """Compares keys, lengths and types at every depth; ints must be at least 0."""
    if isinstance(wanted, dict):
        _same_keys(path, saved, wanted)
        for key, value in wanted.items():
            _same_form((*path, key), saved[key], value)
    elif isinstance(wanted, list | tuple):
        _same_length(path, saved, len(wanted))
        for index, value in enumerate(wanted):
            _same_form((*path, index), saved[index], value)
    elif type(saved) is not type(wanted) or (type(saved) is int and saved < 0):
        kind = "whole number" if type(wanted) is int else type(wanted).__name__
        raise _Unfit(f"{path_text(path)} is {_shown(saved)}, want {a(kind)}")


def _same_value(path: Path, saved: Any, wanted: Any) -> None:
    if saved != wanted:
        raise _Unfit(f"{path_text(path)} is {_shown(saved)}, want {_shown(wanted)}")


def _same_keys(path: Path, saved: Any, wanted: Mapping[str, Any]) -> None:
    if not isinstance(saved, dict):
        raise _Unfit(f"{path_text(path)} is {_shown(saved)}, want a dict")
    for keys, problem in (
        (wanted.keys() - saved.keys(), "is missing"),
        (saved.keys() - wanted.keys(), "is unknown here"),
    ):
        if keys:
            raise _Unfit(f"{path_text((*path, min(keys, key=str)))} {problem}")


def _same_length(path: Path, saved: Any, wanted: int) -> None:
    if not isinstance(saved, list | tuple) or len(saved) != wanted:
        raise _Unfit(f"{path_text(path)} is {_shown(saved)}, want a list of {wanted}")


def _check_progress(checkpoint: Mapping[str, Any], trainer: Any) -> None:
    """Compares the counts of steps. A loader checks its own state, which lies among them, on loading."""
    path = ("loops", "fit_loop")
    saved = checkpoint["loops"].get("fit_loop")
    wanted = trainer.fit_loop.state_dict()
    _same_keys(path, saved, wanted)
    loader = saved["state_dict"]
    _same_keys((*path, "state_dict"), loader, {"combined_loader": None})
    _same_length((*path, "state_dict", "combined_loader"), loader["combined_loader"], 1)
    counts = wanted.keys() - {"state_dict"}
    _same_form(path, {k: saved[k] for k in counts}, {k: wanted[k] for k in counts})
    progress = saved["epoch_loop.automatic_optimization.optim_progress"]
    steps = progress["optimizer"]["step"]["total"]["completed"]
    if steps != checkpoint["global_step"]:
        raise _Unfit(f"its loops count {steps} steps, global_step {checkpoint['global_step']}")


def _entries(state: Mapping[str, Any]) -> int:
    """The number of parameters in an optimiser's state and in those of its inner optimisers."""
    inner = state.get("inner")
    inner = inner if isinstance(inner, dict) else {}
    own = state.get("state")
    return len(own if isinstance(own, dict) else {}) + sum(map(_entries, inner.values()))


class _Expected:
    """The form of an optimiser's state, read from one step of another one over small stand-ins.

    So this works for any optimiser, also a library's: the step shows the names and dtypes of the
    tensors that it stores for a parameter, and which of the parameter's dimensions they have.
    """

    def __init__(
        self,
        build: Optimiser,
        optimiser: torch.optim.Optimizer,
        groups: list[dict[str, Any]],
        names: Mapping[int, str],
    ) -> None:
        small = [{**group, "params": [_stand_in(p) for p in group["params"]]} for group in groups]
        self._real, self._names = optimiser, names
        self._trial, _ = build(small)
        self._before = copy.deepcopy(self._trial.state_dict())
        if isinstance(self._trial, Signum):
            self._trial.train()
        for group in small:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        self._trial.step()

    def check(self, path: Path, saved: Any) -> None:
        self._optimiser(path, saved, self._real, self._trial, self._before)

    def _optimiser(
        self,
        path: Path,
        saved: Any,
        real: torch.optim.Optimizer,
        trial: torch.optim.Optimizer,
        before: Mapping[str, Any],
    ) -> None:
        after = trial.state_dict()
        _same_keys(path, saved, after)
        groups = saved["param_groups"]
        _same_length((*path, "param_groups"), groups, len(after["param_groups"]))
        for index, (there, here) in enumerate(zip(groups, after["param_groups"], strict=True)):
            entry = (*path, "param_groups", index)
            _same_form(entry, there, here)
            for key, value in before["param_groups"][index].items():
                # Values that no step changes come from the configuration.
                if key != "lr" and value == here[key]:
                    _same_value((*entry, key), there[key], value)
        if not isinstance(saved["state"], dict):
            raise _Unfit(f"{path_text((*path, 'state'))} is {_shown(saved['state'])}, want a dict")
        parameters, stand_ins = map(_parameters, (real, trial))
        for index, state in saved["state"].items():
            entry = (*path, "state", index)
            if type(index) is not int or index not in after["state"]:
                raise _Unfit(f"{path_text(entry)} belongs to none of {len(parameters)} parameters")
            self._state(entry, state, after["state"][index], parameters[index], stand_ins[index])
        if isinstance(real, Composed) and isinstance(trial, Composed):
            _same_keys((*path, "inner"), saved["inner"], real.inner)
            for name, optimiser in real.inner.items():
                entry = (*path, "inner", name)
                inner = before["inner"][name]
                self._optimiser(entry, saved["inner"][name], optimiser, trial.inner[name], inner)

    def _state(
        self, path: Path, saved: Any, wanted: Mapping[str, Any], parameter: Tensor, small: Tensor
    ) -> None:
        _same_keys(path, saved, wanted)
        owner = f", of {self._names[id(parameter)]}," if id(parameter) in self._names else ""
        for name, value in wanted.items():
            if not isinstance(value, Tensor):
                _same_form((*path, name), saved[name], value)
                continue
            sizes = dict(zip(small.shape, parameter.shape, strict=True))
            shape = [sizes.get(size, size) for size in value.shape]
            form = torch.empty(shape, dtype=value.dtype, device="meta")
            _same_tensor((*path, name), saved[name], form, owner)


def _stand_in(parameter: Tensor) -> nn.Parameter:
    """A small parameter. A stack keeps its number of matrices, as optimisers may take it apart."""
    stacked = parameter.shape[: max(0, parameter.ndim - 2)]
    sizes = [size for size in SIZES if size not in stacked][: parameter.ndim - len(stacked)]
    return nn.Parameter(torch.ones(*stacked, *sizes, dtype=parameter.dtype))


def _parameters(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimiser.param_groups for p in group["params"]]


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, dict | list | tuple):
        return f"{a(type(value).__name__)} of {len(value)}"
    if isinstance(value, Tensor | np.ndarray):
        return "a tensor"
    return repr(value)[:40]
