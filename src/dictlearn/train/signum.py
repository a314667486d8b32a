"""Schedule-free signum: steps along the gradient's sign, and an average of the iterates."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, final

import torch

from dictlearn.ranges import NonNegative, ProperFraction


@final
class Signum(torch.optim.Optimizer):
    """Sign descent (Bernstein et al. 2018) under schedule-free averaging (Defazio et al. 2024).

    Both are pytorch_optimizer's. Every number moves by `lr` a step, and the result is the average of
    the iterates: `lr` is a few times Adam's (docs/performance.md). It wants no decay
    (`schedule.decay=0`, as conf/optim/signum.yaml has it). Training reads
    the weights at y, between the steps' own z and their average x; `eval` puts x in their place, `train`
    puts y there again. Checkpoints hold y and z. One tensor of state a parameter.
    """

    def __init__(
        self, params: Iterable[Any], lr: NonNegative = 1e-2, momentum: ProperFraction = 0.95
    ):
        from pytorch_optimizer import ScheduleFreeWrapper, SignSGD

        base = SignSGD(params, lr=lr, momentum=0.0)
        self._inner = ScheduleFreeWrapper(base, momentum=momentum)
        super().__init__(base.param_groups, base.defaults)
        self._share()

    def _share(self) -> None:
        """Gives the wrapper this optimiser's groups and state, which a resume replaces."""
        self._inner.optimizer.param_groups = self.param_groups
        self._inner.state = self.state

    def train(self) -> None:
        self._share()
        self._inner.train()

    def eval(self) -> None:
        self._share()
        self._inner.eval()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._inner.train_mode = True  # checkpoints are written during training, and hold y

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        if any(p.grad is not None for group in self.param_groups for p in group["params"]):
            self._share()
            self._inner.step()  # a refused step is not even counted
        return loss
