"""Adam that sums a weight's gradient where it uses it: no dense gradient, one pass over the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from dictlearn_kernels import rounded
from dictlearn_kernels.fused_adam import FeatureRows, Step, adam, measure, update
from dictlearn_kernels.fused_adam.moments import FORMS
from dictlearn_kernels.weight_grad import Collector, RowGradient
from torch import Tensor

from dictlearn.ranges import Decay, NonNegative, Positive

# A CPU keeps gradients of fewer numbers than this in its cache. Then a buffer costs less than summing
# the rows twice, once for the norm and once for the step (scripts/bench.py).
SMALLEST = 2**23


def pays(numbers: int, on_gpu: bool) -> bool:
    """Whether row gradients of this many numbers are faster kept as factors than stored as tensors."""
    return on_gpu or numbers >= SMALLEST


Moments = Literal["float32", "bfloat16", "8bit"]


@dataclass
class _Rows:
    """Rows that form features, and the state of their gradient in this step."""

    features: FeatureRows
    along_N: Tensor | None = None  # the component that the projection removes, from `measure`
    scale: float = 1.0  # the factor of clipping

    def forget(self) -> None:
        self.along_N, self.scale = None, 1.0


@final
class FusedAdam(torch.optim.Optimizer):
    """Adam (Kingma & Ba 2015) without weight decay: the numbers of torch.optim.Adam.

    On `.grad` it works as any optimiser. If `attach` has given it the feature rows of dictionaries,
    their gradients stay in factors from the backward pass on (`collect`); `measure` gives the norm
    of each dictionary's gradient, and `step` projects, clips, updates and normalises row by row.
    That is for one process: gradients that are averaged over several processes must be tensors.
    `train.gradients` calls these in their order.

    Args:
        moments: how both moments of matrices are stored: float32, bfloat16 (half the memory) or
            8bit (a quarter).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: NonNegative = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        eps: Positive = 1e-8,
        moments: Moments = "float32",
    ):
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "eps": eps})
        self.moments = moments
        self._rows: dict[str, list[_Rows]] = {}  # of each dictionary
        self._made: dict[int, RowGradient | None] = {}  # by parameter, in this step
        self._collector = Collector([])

    # --- gradients in factors -----------------------------------------------------------------

    def attach(self, features: Mapping[str, list[FeatureRows]]) -> bool:
        """Takes over the rows of named dictionaries, if that is faster. Returns whether it did."""
        parts = [part for several in features.values() for rows in several for part in rows.parts]
        parameters = {id(p): p for p, _ in parts}
        numbers = sum(p.numel() for p in parameters.values())
        if not pays(numbers, any(p.is_cuda for p in parameters.values())):
            return False
        self._rows = {name: list(map(_Rows, several)) for name, several in features.items()}
        self._collector = Collector(parameters.values())
        return True

    def collects(self, parameter: Tensor) -> bool:
        """Whether a parameter's gradient is measured, projected and scaled here."""
        return self._collector.has(parameter)

    def collect(self) -> None:
        """Until `stop`, backward passes leave the gradients of rows in factors."""
        self._collector.start()

    def stop(self) -> None:
        self._collector.stop()

    def drop(self) -> None:
        """Discards the collected gradients."""
        self._collector.clear()
        self._made.clear()
        for rows in self._all_rows():
            rows.forget()

    def measure(self, name: str) -> Tensor:
        """Norm of the gradient of a dictionary's rows after the projection, float64 scalar."""
        squares = []
        for rows in self._rows[name]:
            square, rows.along_N = measure(rows.features, self._gradients(rows.features))
            squares.append(square)
        return torch.stack(squares).sum().clamp_min(0).sqrt()

    def clip(self, name: str, scale: float) -> None:
        """Multiplies the gradient of a dictionary's rows by `scale`, in this step."""
        for rows in self._rows[name]:
            rows.scale = scale

    def _all_rows(self) -> list[_Rows]:
        return [rows for several in self._rows.values() for rows in several]

    # --- the step -----------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        moved: dict[int, Step] = {}
        pairs = [(p, group) for group in self.param_groups for p in group["params"]]
        for index, (p, group) in enumerate(pairs):
            if self._gradient(p) is None:
                continue
            moved[id(p)] = self._begin(p, group, index)
            if not self.collects(p):
                self._update_whole(p, moved[id(p)])
        for rows in self._all_rows():
            self._update_rows(rows, moved)
        self._made.clear()
        return loss

    @torch.no_grad()
    def _update_whole(self, p: Tensor, step: Step) -> None:
        if p.ndim > 2:
            self._update_rows(_Rows(FeatureRows(((p, 0),), p[..., 0].numel())), {id(p): step})
        else:
            assert p.grad is not None
            adam(p, p.grad, self.state[p]["exp_avg"], self.state[p]["exp_avg_sq"], step)

    def _update_rows(self, rows: _Rows, moved: Mapping[int, Step]) -> None:
        form, features = FORMS[self.moments], rows.features
        steps = [moved.get(id(p)) for p, _ in features.parts]
        if not any(steps):
            return  # nothing moves: not even a norm, by a rounding error
        moments = [
            None if step is None else form(self.state[p], p.shape[-1], step.seed)
            for (p, _), step in zip(features.parts, steps, strict=True)
        ]
        gradients = self._gradients(features)
        update(features, gradients, moments, rows.along_N, steps, rows.scale)
        if features.shadow is not None:
            rounded.settle(features.parts[0][0])

    def _begin(self, p: Tensor, group: Mapping[str, Any], index: int) -> Step:
        """Makes a parameter's state if there is none, and counts the step."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state.update(FORMS[self.moments if p.ndim > 2 else "float32"].zeros(p))
        state["step"] += 1
        number = int(state["step"])  # on the CPU, where reading it costs nothing
        beta1, beta2 = group["betas"]
        # Kernels are compiled for a seed of 31 bits; a wider one would compile them again mid-run.
        seed = (number * 2**16 + index) % 2**31
        return Step(number, float(group["lr"]), beta1, beta2, group["eps"], seed)

    def _gradients(self, features: FeatureRows) -> list[RowGradient | None]:
        return [self._gradient(p) for p, _ in features.parts]

    def _gradient(self, p: Tensor) -> RowGradient | None:
        """A parameter's gradient: the same object for both passes of a step."""
        if id(p) not in self._made:
            self._made[id(p)] = self._collector.gradient(p)
        return self._made[id(p)]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads as torch does, then restores the dtypes of moments, which torch makes the parameter's."""
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            if p.ndim > 2:
                for name, zeros in FORMS[self.moments].zeros(p).items():
                    state[name] = state[name].to(zeros.dtype)
