"""The state of every random number generator a step may draw from, as plain values and tensors.

Lightning stores none of it; without it a resumed run draws other numbers from the first step on.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def collect() -> dict[str, Any]:
    """The states of python, numpy (the global one), torch on the CPU and on every CUDA device."""
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
    """Sets every generator to what `collect` saw; CUDA's only where the device count is the same.

    Raises:
        ValueError: a state that these versions of the libraries do not take.
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


def _check_numpy(state: dict[str, Any]) -> None:
    """numpy reads from wherever a position points, also past the end of its keys."""
    keys, position = state["keys"], state["position"]
    fits = state["kind"] == "MT19937" and keys.shape == (624,) and keys.dtype == np.uint32
    if not fits or type(position) is not int or not 0 <= position <= 624:
        raise ValueError("numpy's is no state of MT19937")
