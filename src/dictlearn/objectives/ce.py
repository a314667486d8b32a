"""Cross-entropy of the next token, as a target that is not fixed. A bad example, for comparison.

It is KL(text || patched), where the text is a distribution with all its mass on the next token. So
the loss can fall below that of the model itself, if the dictionary predicts the text better than the
model does. KL to a fixed teacher does not reward that.
"""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.readout import Readout
from dictlearn.objectives.kl_to_teacher import kl_of_log_probs
from dictlearn.objectives.teacher import Targets, Teacher, total_of_chunks
from dictlearn.sparsity import ranks


@final
class NextToken(Teacher):
    """The text as the teacher: the loss is the cross-entropy of the token that comes next.

    The loss is a mean over the valid positions that a valid one follows in the same window. The KL
    to the model without the dictionary is recorded too, as `kl`: it gives the balance its ratio, so
    that a nat of cross-entropy weighs as much as a nat of KL does with `teacher=self`. `ce_increase` is
    what the dictionary adds to the cross-entropy of the batch.
    """

    def __init__(self, lm: LanguageModel):
        super().__init__(lm)
        self._readout: Readout | None = None

    @torch.no_grad()
    def targets(self, tokens_BP: Tensor, valid_BP: Tensor) -> Targets:
        if self._readout is None:
            self._readout = Readout(self.lm, tokens_BP)
        states_ND = self._readout.states(tokens_BP)[valid_BP]
        followed_BP = torch.zeros_like(valid_BP)
        followed_BP[:, :-1] = valid_BP[:, 1:]
        next_N = tokens_BP.roll(-1, dims=1)[valid_BP]
        return _NextTokens(self._readout, states_ND, next_N, followed_BP[valid_BP])


@final
class _NextTokens:
    def __init__(self, readout: Readout, states_ND: Tensor, next_N: Tensor, followed_N: Tensor):
        self._readout, self._states_ND, self._next_N = readout, states_ND, next_N
        # The caller takes the mean over all rows, and those without a next token add nothing.
        tokens = torch.tensor(len(followed_N), device=followed_N.device)
        tokens, followed = ranks.sum_of_all(torch.stack([tokens, followed_N.sum()]))
        self._weight_N = followed_N.double() * tokens / followed.clamp(min=1)
        self._sums = torch.zeros(2, dtype=torch.float64)  # KL, increase of the cross-entropy

    def kl(self, rows: slice, logits_NV: Tensor) -> Tensor:
        patched_NV = logits_NV.log_softmax(-1)
        ce_N = self._ce(rows, patched_NV)
        with torch.no_grad():
            clean_NV = self._readout.logits(self._states_ND[rows]).log_softmax(-1)
            kl = kl_of_log_probs(clean_NV, patched_NV).double().sum()
            increase = (ce_N - self._ce(rows, clean_NV)).double().sum()
            self._sums += torch.stack([kl, increase]).cpu()
        return ce_N

    def total(self, states_ND: Tensor, readout: Readout, chunk: int) -> Tensor:
        reason = "the cross-entropy of the next token"
        return total_of_chunks(self, states_ND, readout, chunk, reason)

    def _ce(self, rows: slice, log_probs_NV: Tensor) -> Tensor:
        next_N1, weight_N = self._next_N[rows, None], self._weight_N[rows].to(log_probs_NV)
        return -weight_N * log_probs_NV.gather(1, next_N1).squeeze(1)

    def figures(self) -> dict[str, float]:
        kl, increase = (self._sums / max(1, len(self._next_N))).tolist()
        return {"kl": kl, "ce_increase": increase}
