"""What is to change: the activation of a feature, or a site along a direction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

if TYPE_CHECKING:
    from dictlearn.interventions.directions import Direction
    from dictlearn.interventions.vectors import ConceptVector

Positions = int | slice | Sequence[int] | Literal["all"]
"""Which tokens: 0 is the first one that the model reads, -1 the last one of the prompt.

"all" and a slice without an end hold for generated tokens too.
"""
Value = float | tuple[float | None, float | None]

EDITS = ("set", "add", "scale", "clamp", "zero")
PUSHES = ("add", "add_scaled", "project_out", "cap")
GATES = ("always", "token", "input")


@dataclass(frozen=True)
class Gate:
    """Changes only the tokens where a feature fires, or all tokens of an input where it fires.

    It asks the pass without interventions. With `on="input"`, a feature that fires on any token of
    the prompt opens the gate for the prompt and for everything generated after it.
    """

    feature: int
    source: int | str = 0
    dictionary: int = 0
    on: Literal["token", "input"] = "token"


@dataclass(frozen=True)
class Edit:
    """A change of one feature's activation, in the dictionary's units.

    Args:
        feature: its index within its source.
        value: a number, which every op but `zero` needs; for `clamp` the largest value, or
            (smallest, largest).
        op: `set` to the value, `add` it, `scale` by it, `clamp` between bounds, or `zero` (ablate).
        source: the row of the code, or its site's name; a CLT of four layers has 0 to 3.
        positions: which tokens; see `Positions`. Special tokens have no features and never change.
        when: "always", on the tokens where this feature fires ("token"), on inputs where it fires
            ("input"), or a `Gate` on another feature.
        dictionary: number of the dictionary among those in place.
    """

    feature: int
    value: Value | None = None
    op: Literal["set", "add", "scale", "clamp", "zero"] = "set"
    source: int | str = 0
    positions: Positions = "all"
    when: Literal["always", "token", "input"] | Gate = "always"
    dictionary: int = 0

    def changed(self, old: Tensor) -> Tensor:
        """New activations for the old ones."""
        match self.op:
            case "set":
                return torch.full_like(old, number(self.value))
            case "add":
                return old + number(self.value)
            case "scale":
                return old * number(self.value)
            case "clamp":
                return old.clamp(*bounds(self.value))
            case _:
                return torch.zeros_like(old)


@dataclass(frozen=True, eq=False)
class Push:
    """A change of a site along a direction.

    Args:
        site: such as resid_post.1.
        direction: [D], in the model's units; its norm counts for `add` alone. A concept vector, or
            the path of one, is taken at the site.
        value: how much; for `cap` the largest projection, or (smallest, largest).
        op: `add` value times the direction, `add_scaled` value times the token's norm along it,
            `project_out` the component along it, or `cap` that component.
        positions: which tokens. Special tokens never change.
        when: "always", or a `Gate` on a feature of a dictionary in place.
    """

    site: str
    direction: Tensor | Direction | ConceptVector | str | Path
    value: Value = 1.0
    op: Literal["add", "add_scaled", "project_out", "cap"] = "add"
    positions: Positions = "all"
    when: Literal["always"] | Gate = "always"

    def changed(self, x: Tensor) -> Tensor:
        """New activations [..., D] for the old ones."""
        assert isinstance(self.direction, Tensor), "directions.resolved reads it"
        direction = self.direction.to(x)
        if self.op == "add":
            return x + number(self.value) * direction
        unit = direction / direction.norm()
        if self.op == "add_scaled":
            return x + number(self.value) * x.norm(dim=-1, keepdim=True) * unit
        along = (x @ unit)[..., None]
        kept = along.clamp(*bounds(self.value)) if self.op == "cap" else torch.zeros_like(along)
        return x + (kept - along) * unit


def as_edit(edit: Any) -> Edit | Push:
    """An `Edit` or `Push`, or an `Edit` from circuit-tracer's (layer, position, feature, value).

    Raises:
        ValueError: it is none of these, or a part of it is not what it has to be.
    """
    if isinstance(edit, tuple | list) and len(edit) == 4:
        source, positions, feature, value = edit
        edit = Edit(feature=_plain(feature), value=value, source=source, positions=positions)
    if not isinstance(edit, Edit | Push):
        raise ValueError(f"{edit!r}: want an Edit, a Push or (source, position, feature, value)")
    _check(edit)
    return edit


def number(value: Value | None) -> float:
    if isinstance(value, tuple | list) or value is None:
        raise ValueError(f"value={value}: want a number; only clamp and cap take two bounds")
    return float(value)


def bounds(value: Value | None) -> tuple[float | None, float | None]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (None, number(value))


def selected(positions: Positions, positions_BP: Tensor, prompt_B: Tensor) -> Tensor:
    """bool [B, P]: which of these positions an intervention is for. `prompt_B` counts the prompt's."""
    real = positions_BP >= 0  # padding on the left has negative positions
    if isinstance(positions, str):
        return real
    ends = prompt_B[:, None]
    if isinstance(positions, slice):
        start = 0 if positions.start is None else positions.start
        low = start if start >= 0 else (ends + start).clamp_min(0)
        chosen = (positions_BP >= low) & ((positions_BP - low) % (positions.step or 1) == 0)
        if positions.stop is not None:
            chosen &= positions_BP < (
                positions.stop if positions.stop >= 0 else ends + positions.stop
            )
        return chosen & real
    chosen = torch.zeros_like(real)
    for position in [positions] if isinstance(positions, int) else positions:
        chosen |= positions_BP == (position if position >= 0 else ends + position)
    return chosen & real


def gate_of(edit: Edit | Push) -> Gate | None:
    """What opens an intervention for tokens or inputs; None if its own token decides, or nothing."""
    if isinstance(edit, Edit) and edit.when == "input":
        return Gate(edit.feature, edit.source, edit.dictionary, "input")
    return edit.when if isinstance(edit.when, Gate) else None


def _check(edit: Edit | Push) -> None:
    known = EDITS if isinstance(edit, Edit) else PUSHES
    if edit.op not in known:
        raise ValueError(f"op={edit.op!r}: want one of {', '.join(known)}")
    gates = GATES if isinstance(edit, Edit) else GATES[:1]
    if not isinstance(edit.when, Gate) and edit.when not in gates:
        raise ValueError(f"when={edit.when!r}: want {', '.join(gates)} or a Gate")
    if isinstance(edit.when, Gate) and edit.when.on not in GATES[1:]:
        raise ValueError(f"on={edit.when.on!r}: want {' or '.join(GATES[1:])}")
    _check_positions(edit.positions)
    if edit.value is None and edit.op == "zero":
        return
    if edit.value is None:
        raise ValueError(f"value=None: op={edit.op} wants a number")
    parts = edit.value if isinstance(edit.value, tuple | list) else (edit.value,)
    limits = edit.op in ("clamp", "cap")
    if len(parts) > 2 or (len(parts) == 2 and not limits):
        raise ValueError(f"value={edit.value}: want a number; only clamp and cap take two bounds")
    if not all(_finite(part) or (part is None and len(parts) == 2) for part in parts):
        raise ValueError(f"value={edit.value!r}: want a finite number")
    if len(parts) == 2 and None not in parts and parts[0] > parts[1]:  # type: ignore[operator]
        raise ValueError(f"value={edit.value}: the smallest value comes first")
    if isinstance(edit, Push):
        direction = edit.direction
        if not isinstance(direction, Tensor) or direction.ndim != 1:
            raise ValueError("direction: want a tensor [width]")
        if not bool(direction.isfinite().all()) or float(direction.norm()) == 0:
            raise ValueError("direction: has a value that is not finite, or is zero")


def _check_positions(positions: Any) -> None:
    if isinstance(positions, slice):
        if positions.step is not None and positions.step < 1:
            raise ValueError(f"positions={positions}: want a step of at least 1")
        return
    listed = positions if isinstance(positions, Sequence) else [positions]
    if positions != "all" and not all(type(item) is int for item in listed):
        raise ValueError(
            f'positions={positions!r}: want a whole number, a list of them, a slice or "all"'
        )


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor) and value.numel() == 1:
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value)


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, Tensor) and value.numel() == 1 else value
