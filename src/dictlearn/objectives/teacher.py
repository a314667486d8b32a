"""The fixed model whose next-token distributions are the target: KL(teacher || patched).

"Fixed" means that the target depends neither on the dictionary nor on the next token of the text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol, final

import torch
from dictlearn_kernels.dispatch import choose
from dictlearn_kernels.kl_chunked import kl_of_states
from torch import Tensor

from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.readout import Readout, has_head
from dictlearn.objectives.kl_to_teacher import chunked_sum, kl_of_log_probs
from dictlearn.ranges import Positive


class Targets(Protocol):
    """A teacher's distributions for a batch's N valid tokens, in reading order."""

    def kl(self, rows: slice, logits_NV: Tensor) -> Tensor:
        """KL(teacher || patched) [n] of the rows `rows`, in nats, from the patched model's logits.

        Its gradient in the logits is that of the KL, or an unbiased estimate of it.
        """
        ...

    def total(self, states_ND: Tensor, readout: Readout, chunk: int) -> Tensor:
        """The sum of `kl` over all rows; `readout` turns `states_ND` into their logits.

        `chunk` is the number of rows whose logits exist at once, if any do.
        """
        ...

    def figures(self) -> dict[str, float]:
        """Further figures to record, once all rows are done: means over tokens."""
        ...


def total_of_chunks(
    targets: Targets, states_ND: Tensor, readout: Readout, chunk: int, reason: str
) -> Tensor:
    """`Targets.total` from the logits of one chunk at a time; the list of kernels shows `reason`."""
    choose("kl_of_states", states_ND, reason)

    def nats(rows: slice, states: Tensor) -> Tensor:
        return targets.kl(rows, readout.logits(states))

    return chunked_sum(nats, states_ND, chunk)


class Teacher(ABC):
    """Abstract. The `teacher` group builds it with the model that the dictionary is put into."""

    def __init__(self, lm: LanguageModel, temperature: Positive = 1.0):
        if not has_head(lm):
            raise ValueError(
                f"model.path={lm.info.name}: predicts no next token, so it has no KL to a teacher; "
                f"want a causal language model or objective=mse"
            )
        self.lm, self.temperature = lm, temperature

    def __deepcopy__(self, memo: dict[int, Any]) -> Teacher:
        return self  # fixed, so shared

    @abstractmethod
    def targets(self, tokens_BP: Tensor, valid_BP: Tensor) -> Targets:
        """The targets of a batch. Models run without a graph."""


@final
class SelfTeacher(Teacher):
    """The model itself, unpatched: the KL is zero exactly where the dictionary changes nothing."""

    def __init__(self, lm: LanguageModel, temperature: Positive = 1.0):
        super().__init__(lm, temperature)
        self._readout: Readout | None = None

    @torch.no_grad()
    def targets(self, tokens_BP: Tensor, valid_BP: Tensor) -> Targets:
        if self._readout is None:
            self._readout = Readout(self.lm, tokens_BP)
        states_ND = self._readout.states(tokens_BP)[valid_BP]
        return _OwnTargets(self._readout, states_ND, self.temperature)


@final
class _OwnTargets:
    def __init__(self, readout: Readout, states_ND: Tensor, temperature: Positive):
        self._readout, self._states_ND, self._temperature = readout, states_ND, temperature

    def kl(self, rows: slice, logits_NV: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_NV = _log_probs(self._readout.logits(self._states_ND[rows]), self._temperature)
        patched_NV = _log_probs(logits_NV, self._temperature)
        return self._temperature**2 * kl_of_log_probs(teacher_NV, patched_NV)

    def total(self, states_ND: Tensor, readout: Readout, chunk: int) -> Tensor:
        W_VD, teacher_W_VD = readout.unembedding(), self._readout.unembedding()
        if W_VD is None or teacher_W_VD is None:
            reason = "a head that is more than a matrix (a bias, soft-capping)"
            return total_of_chunks(self, states_ND, readout, chunk, reason)
        nats_N = kl_of_states(
            states_ND, W_VD, self._states_ND, teacher_W_VD, self._temperature, chunk
        )
        return self._temperature**2 * nats_N.sum()

    def figures(self) -> dict[str, float]:
        return {}


def _log_probs(logits_NV: Tensor, temperature: Positive) -> Tensor:
    return (logits_NV / temperature).log_softmax(-1)
