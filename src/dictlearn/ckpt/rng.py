"""Save and restore the random number generators that a step may draw from.

Lightning doesn't store their states, without which a resumed run would draw other numbers.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def collect() -> dict[str, Any]:
    """The states of Python's, NumPy's (the global one) and torch's generators, also on all GPUs."""
    version, words, next_gauss = random.getstate()
    kind, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": {"version": version, "words": torch.tensor(words), "next_gauss": next_gauss},
        "numpy": {
            "kind": kind,
            "keys": np.array(keys),
            "position": int(position),
            "has_gauss": bool(has_gauss),
            "gauss": float(gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(states: dict[str, Any]) -> None:
    """Sets every generator to its state in `states`; CUDA's only if the device count is the same.

    Raises:
        ValueError: these versions of the libraries don't accept a state.
    """
    try:
        python, numpy = states["python"], states["numpy"]
        _check_numpy(numpy)
        random.setstate((python["version"], tuple(python["words"].tolist()), python["next_gauss"]))
        np.random.set_state(
            (numpy["kind"], numpy["keys"], numpy["position"], numpy["has_gauss"], numpy["gauss"])
        )
        torch.set_rng_state(states["torch"])
        if torch.cuda.is_available() and len(states["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(states["cuda"])
    except (
        LookupError,
        TypeError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
    ) as error:
        raise ValueError(f"the checkpoint's random number states cannot be set: {error}") from None


def part(process: int) -> None:
    """Gives this process states of its own, drawn from those that several have in common."""
    seed = int(torch.randint(2**31, ())) + process
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _check_numpy(state: dict[str, Any]) -> None:
    """Checks NumPy's state: NumPy would read past the end of its keys if the position says so."""
    keys, position = state["keys"], state["position"]
    fits = state["kind"] == "MT19937" and keys.shape == (624,) and keys.dtype == np.uint32
    if not fits or type(position) is not int or not 0 <= position <= 624:
        raise ValueError("numpy's is no state of MT19937")
