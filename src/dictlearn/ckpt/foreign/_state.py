"""Read state dicts that torch.save wrote, without running code from the file."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from dictlearn.disk.torch_saved import loaded


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, by name.

    Raises:
        ValueError: one sentence that names the file, if it is damaged or holds anything else.
    """
    state = loaded(path)
    entries = state if isinstance(state, dict) else {0: state}
    tensors = {k: t for k, t in entries.items() if isinstance(k, str) and isinstance(t, Tensor)}
    if len(tensors) < len(entries):
        raise ValueError(f"{path}: want a state dict of names and tensors only")
    return tensors
