"""Whether a checkpoint is one that this run could have written: looked at before any of it is loaded.

A manifest says that files are what was saved, not that they were saved by a run like this one. Lightning
and torch load what fits by name, moments of any shape included, and go on from step 0 where the count of
steps is missing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from dictlearn.ckpt.codec import leaves, path_text

Path = tuple[str | int, ...]

# What Lightning writes of every run, and CheckpointCallback beside it.
ENTRIES = {
    "state_dict": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "global_step": int,
    "rng": list,
}
# What it writes beside that where the weights are averaged.
AVERAGING = {"current_model_state": dict, "averaging_state": dict}


@runtime_checkable
class StatesKnown(Protocol):
    """An optimiser that says what it stores of a parameter."""

    def state_of(self, parameter: Tensor) -> dict[str, Tensor]:
        """Name to tensor of the right shape and dtype, on the meta device."""
        ...


@runtime_checkable
class Composed(Protocol):
    """An optimiser made of others, whose states lie under `inner` by their names."""

    inner: Mapping[str, torch.optim.Optimizer]


class _Unfit(ValueError):
    pass


def refuse_unfit(
    checkpoint: Mapping[str, Any],
    module: Any,
    optimiser: torch.optim.Optimizer,
    schedule: Mapping[str, Any],
    where: object,
) -> None:
    """Compares a checkpoint that was read from `where` with what this run holds.

    Args:
        module: the LightningModule, with its trainer.
        optimiser: a new one over its parameters.
        schedule: the state of a new learning-rate schedule of it.

    Raises:
        ValueError: one sentence that names the first entry of another name, type, shape or dtype, or
            with a number that is not finite.
    """
    try:
        _check(checkpoint, module, optimiser, schedule)
    except _Unfit as problem:
        raise ValueError(
            f"resume={where}: the checkpoint is not one of this run: {problem}"
        ) from None


def _check(
    checkpoint: Mapping[str, Any],
    module: Any,
    optimiser: torch.optim.Optimizer,
    schedule: Mapping[str, Any],
) -> None:
    averaged = any(isinstance(one, WeightAveraging) for one in module.trainer.callbacks)
    for name, kind in (ENTRIES | (AVERAGING if averaged else {})).items():
        if not isinstance(checkpoint.get(name), kind):
            raise _Unfit(f"{name} is {_shown(checkpoint.get(name))}, want a {kind.__name__}")
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
    names = {id(p): name for name, p in module.named_parameters()}
    _check_optimiser(("optimizer_states", 0), checkpoint["optimizer_states"][0], optimiser, names)
    _same_length(("lr_schedulers",), checkpoint["lr_schedulers"], 1)
    _same_form(("lr_schedulers", 0), checkpoint["lr_schedulers"][0], schedule)


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


def _same_tensor(path: Path, saved: Any, wanted: Tensor, of: str = "") -> None:
    if not isinstance(saved, Tensor):
        raise _Unfit(f"{path_text(path)}{of} is {_shown(saved)}, want a tensor")
    for what, there, here in (
        ("shape", list(saved.shape), list(wanted.shape)),
        ("dtype", saved.dtype, wanted.dtype),
    ):
        if there != here:
            raise _Unfit(f"{path_text(path)}{of} has the {what} {there}, want {here}")


def _same_form(path: Path, saved: Any, wanted: Any) -> None:
    """The same keys and lengths all the way down, and plain values of the same types; no int below 0."""
    if isinstance(wanted, dict):
        _same_keys(path, saved, wanted)
        for key, value in wanted.items():
            _same_form((*path, key), saved[key], value)
    elif isinstance(wanted, list | tuple):
        _same_length(path, saved, len(wanted))
        for index, value in enumerate(wanted):
            _same_form((*path, index), saved[index], value)
    elif type(wanted) is float and type(saved) in (int, float):
        return
    elif type(saved) is not type(wanted) or (type(saved) is int and saved < 0):
        kind = "whole number" if type(wanted) is int else type(wanted).__name__
        raise _Unfit(f"{path_text(path)} is {_shown(saved)}, want a {kind}")


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
    """Counts of steps. A loader checks its own state, which lies among them, when it is given it."""
    path = ("loops", "fit_loop")
    saved = checkpoint["loops"].get("fit_loop")
    wanted = trainer.fit_loop.state_dict()
    _same_keys(path, saved, wanted)
    of_loader = saved["state_dict"]
    _same_keys((*path, "state_dict"), of_loader, {"combined_loader": None})
    _same_length((*path, "state_dict", "combined_loader"), of_loader["combined_loader"], 1)
    counts = wanted.keys() - {"state_dict"}
    _same_form(path, {k: saved[k] for k in counts}, {k: wanted[k] for k in counts})
    progress = saved["epoch_loop.automatic_optimization.optim_progress"]
    steps = progress["optimizer"]["step"]["total"]["completed"]
    if steps != checkpoint["global_step"]:
        raise _Unfit(f"its loops count {steps} steps, global_step {checkpoint['global_step']}")


def _check_optimiser(
    path: Path, saved: Any, optimiser: torch.optim.Optimizer, names: Mapping[int, str]
) -> None:
    wanted = optimiser.state_dict()
    _same_keys(path, saved, wanted)
    _same_length((*path, "param_groups"), saved["param_groups"], len(wanted["param_groups"]))
    pairs = zip(saved["param_groups"], wanted["param_groups"], strict=True)
    for index, (there, here) in enumerate(pairs):
        place = (*path, "param_groups", index)
        if not isinstance(there, dict):
            raise _Unfit(f"{path_text(place)} is {_shown(there)}, want a dict")
        # The schedule and the steps add entries of their own.
        _same_form(place, {k: v for k, v in there.items() if k in here}, here)
        if there["params"] != here["params"]:
            raise _Unfit(f"{path_text(place)} holds the parameters {there['params']}")
    if not isinstance(saved["state"], dict):
        raise _Unfit(f"{path_text((*path, 'state'))} is {_shown(saved['state'])}, want a dict")
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for index, state in saved["state"].items():
        place = (*path, "state", index)
        if type(index) is not int or not 0 <= index < len(parameters):
            raise _Unfit(f"{path_text(place)} belongs to none of {len(parameters)} parameters")
        parameter = parameters[index]
        of = f", of {names[id(parameter)]}," if id(parameter) in names else ""
        for name, there, here in _states(place, state, optimiser, parameter):
            _same_tensor((*place, name), there, here, of)
    if isinstance(optimiser, Composed):
        _same_keys((*path, "inner"), saved["inner"], optimiser.inner)
        for name, one in optimiser.inner.items():
            _check_optimiser((*path, "inner", name), saved["inner"][name], one, names)


def _states(
    path: Path, state: Any, optimiser: torch.optim.Optimizer, parameter: Tensor
) -> Iterator[tuple[str, Any, Tensor]]:
    """(name, what is stored, a tensor as it should be) of one parameter.

    Of an optimiser that doesn't say what it stores this is a number, or as many as the parameter has.
    """
    if isinstance(optimiser, StatesKnown):
        wanted = optimiser.state_of(parameter)
        _same_keys(path, state, wanted)
        yield from ((name, state[name], tensor) for name, tensor in wanted.items())
        return
    if not isinstance(state, dict):
        raise _Unfit(f"{path_text(path)} is {_shown(state)}, want a dict")
    for name, there in state.items():
        if isinstance(there, Tensor) and there.numel() != 1:
            yield name, there, torch.empty_like(parameter, dtype=there.dtype, device="meta")


def _shown(value: Any) -> str:
    if value is None:
        return "missing"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, Tensor | np.ndarray):
        return "a tensor"
    return repr(value)[:40]
