"""Another model as the teacher, mixed with the model itself: KL(mixture || patched)."""

from __future__ import annotations

import json
import logging
import math
from typing import final

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from dictlearn.lm.language_model import LanguageModel, bos_id
from dictlearn.lm.load import Attention, Dtype, load_model
from dictlearn.lm.readout import Readout, has_head
from dictlearn.objectives.kl_to_teacher import kl_of_log_probs
from dictlearn.objectives.teacher import Targets, Teacher, total_of_chunks
from dictlearn.ranges import Positive, Share

log = logging.getLogger(__name__)

SMOOTHING = 0.95  # the past's weight in the averaged excess that a warning is about


def other_teacher(
    lm: LanguageModel,
    path: str,
    revision: str | None = None,
    dtype: Dtype = "auto",
    device: str = "auto",
    attn: Attention = "auto",
    weight: Share = 0.25,
    temperature: Positive = 1.0,
) -> OtherTeacher:
    """The model at `path` as a teacher, on the device of `lm`; for others see `load_model`."""
    where = str(lm.device) if device == "auto" else device
    try:
        other = load_model(path, revision, where, dtype, attn)
    except ValueError as error:
        raise ValueError(str(error).replace("model.", "teacher.")) from error
    return OtherTeacher(lm, other, weight, temperature)


@final
class OtherTeacher(Teacher):
    """The target is (1 - weight) p_base + weight p_teacher, of models with one tokenizer.

    A dictionary explains its own model. This loss rewards it for lowering KL(teacher || base), which
    means computing something new. So the weight should be small, and the excess

        KL(teacher || base) - KL(teacher || patched)

    is recorded. A warning says when it is positive: the dictionary then improves on its model. Ids
    without a token (vocabularies are padded to round numbers) are left out of all distributions.
    """

    def __init__(
        self, lm: LanguageModel, other: LanguageModel, weight: Share, temperature: Positive = 1.0
    ):
        super().__init__(lm, temperature)
        if not has_head(other):
            raise ValueError(
                f"teacher.path={other.info.name}: predicts no next token; want a causal language model"
            )
        refuse_other_tokens(lm, other)
        assert lm.tokenizer is not None
        ids = sorted(set(lm.tokenizer.get_vocab().values()))
        smallest = min(lm.info.vocab_size, other.info.vocab_size)
        self._ids = torch.tensor([i for i in ids if i < smallest], device=lm.device)
        self.other, self.weight = other, weight
        self._readouts: tuple[Readout, Readout] | None = None
        self._excess: float | None = None  # smoothed
        self._warned = False

    @torch.no_grad()
    def targets(self, tokens_BP: Tensor, valid_BP: Tensor) -> Targets:
        if tokens_BP.shape[1] > self.other.info.context_length > 0:
            raise ValueError(
                f"data.context={tokens_BP.shape[1]}: teacher {self.other.info.name} reads at most "
                f"{self.other.info.context_length} tokens"
            )
        there_BP = tokens_BP.to(self.other.device)
        if self._readouts is None:
            self._readouts = Readout(self.lm, tokens_BP), Readout(self.other, there_BP)
        base, teacher = self._readouts
        return _MixedTargets(
            self,
            (base, base.states(tokens_BP)[valid_BP]),
            (teacher, teacher.states(there_BP)[valid_BP.to(there_BP.device)]),
        )

    def log_probs(self, logits_NV: Tensor) -> Tensor:
        """Log-probabilities over the ids that tokens have, at the teacher's temperature."""
        known_NV = logits_NV.to(self._ids.device).index_select(-1, self._ids)
        return (known_NV / self.temperature).log_softmax(-1)

    def note_excess(self, excess: float) -> None:
        past = excess if self._excess is None else self._excess
        self._excess = SMOOTHING * past + (1 - SMOOTHING) * excess
        if self._excess > 0 and not self._warned:
            self._warned = True
            log.warning(
                "teacher.path=%s: with the dictionary in place the model is %.3f nats closer to the "
                "teacher than without it: the dictionary adds computation of its own, and explains "
                "that instead of the model; a smaller teacher.weight, or teacher=self, prevents it",
                self.other.info.name,
                self._excess,
            )


@final
class _MixedTargets:
    def __init__(
        self,
        teacher: OtherTeacher,
        base: tuple[Readout, Tensor],
        other: tuple[Readout, Tensor],
    ):
        self._teacher, self._base, self._other = teacher, base, other
        self._sums = torch.zeros(3, dtype=torch.float64)
        self._n = 0

    def kl(self, rows: slice, logits_NV: Tensor) -> Tensor:
        scale = self._teacher.temperature**2
        patched_NV = self._teacher.log_probs(logits_NV)
        with torch.no_grad():
            base_NV, teacher_NV = (
                self._teacher.log_probs(readout.logits(states_ND[rows]))
                for readout, states_ND in (self._base, self._other)
            )
            target_NV = self._mixed(base_NV, teacher_NV)
            pairs = (base_NV, patched_NV), (teacher_NV, patched_NV), (teacher_NV, base_NV)
            sums = [scale * kl_of_log_probs(p, q).double().sum() for p, q in pairs]
            self._sums += torch.stack(sums).cpu()
            self._n += len(logits_NV)
        return (scale * kl_of_log_probs(target_NV, patched_NV)).to(logits_NV.device)

    def _mixed(self, base_NV: Tensor, teacher_NV: Tensor) -> Tensor:
        w = self._teacher.weight
        if w == 1:
            return teacher_NV
        return torch.logaddexp(base_NV + math.log1p(-w), teacher_NV + math.log(w))

    def total(self, states_ND: Tensor, readout: Readout, chunk: int) -> Tensor:
        reason = "a mixture of teachers over the ids that tokens have"
        return total_of_chunks(self, states_ND, readout, chunk, reason)

    def figures(self) -> dict[str, float]:
        base_patched, teacher_patched, teacher_base = (self._sums / max(1, self._n)).tolist()
        self._teacher.note_excess(teacher_base - teacher_patched)
        return {
            "kl_base_patched": base_patched,
            "kl_teacher_patched": teacher_patched,
            "kl_teacher_base": teacher_base,
            "kl_excess": teacher_base - teacher_patched,
        }


def refuse_other_tokens(lm: LanguageModel, other: LanguageModel) -> None:
    """Raises ValueError, with the reason, unless both models read the same text as the same ids."""
    where = f"teacher.path={other.info.name}"
    if lm.tokenizer is None or other.tokenizer is None:
        missing = lm.info.name if lm.tokenizer is None else other.info.name
        raise ValueError(
            f"{where}: {missing} has no tokenizer, so whether both read the same tokens cannot be "
            f"known; want a teacher with the tokenizer of {lm.info.name}"
        )
    ours, theirs = lm.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if ours != theirs:
        differ = sorted(
            token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)
        )
        raise ValueError(
            f"{where}: its vocabulary of {len(theirs)} tokens is not that of {lm.info.name}, of "
            f"{len(ours)} ({differ[0]!r} is {theirs.get(differ[0], 'no token')} there and "
            f"{ours.get(differ[0], 'no token')} here); want a teacher with the same tokenizer"
        )
    if _rules(lm.tokenizer) != _rules(other.tokenizer):
        raise ValueError(
            f"{where}: its tokenizer has the vocabulary of {lm.info.name} but cuts text by other "
            f"rules; want a teacher with the same tokenizer"
        )
    if bos_id(lm) != bos_id(other):
        raise ValueError(
            f"{where}: begins a document with token {bos_id(other)}, {lm.info.name} with "
            f"{bos_id(lm)}; want a teacher with the same tokenizer"
        )


def _rules(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's rules for cutting text, as JSON; the vocabulary is not among them."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return type(tokenizer).__name__
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    return json.dumps([parts.get(key) for key in ("normalizer", "pre_tokenizer", "model")])
