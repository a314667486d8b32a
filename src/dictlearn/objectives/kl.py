"""KL to a teacher as a training target: the model predicts with the dictionary in its place.

Sources: Braun et al. 2024 (end-to-end SAEs, with the residuals of later layers), Karvonen 2025
(2503.17272: MSE first, then KL and MSE in equal parts).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

import numpy as np
import torch
from torch import Tensor

from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.patch import Replacement, patched
from dictlearn.lm.readout import Readout
from dictlearn.objectives.protocol import Forward, Term, Windows, zero
from dictlearn.objectives.stand_in import FreeRunning, teacher_forced
from dictlearn.objectives.teacher import Teacher
from dictlearn.ranges import Count, Decay, Fraction, NonNegative, Seed
from dictlearn.sparsity import ranks
from dictlearn.types import TrainedDictionary
from dictlearn.words import a

SMALLEST, LARGEST = 1e-3, 1e3  # the ratio's limits: a KL that goes to zero must not take over


@final
class KLToTeacher(Term):
    """ratio * KL(teacher || patched), in nats per valid token, + later_layers * error downstream.

    The patched run is the model with the reconstruction in place of every target site, on valid
    tokens; all others keep their clean value. A batch of shuffled tokens, which no model can run
    on, adds nothing: the source decides when the term is on.

    Args:
        balance: ratio is sg(anchor / KL), so that both weigh alike whatever their units; the anchor
            is the squared error of the reconstruction, or of the later layers where these are in
            the loss. Numerator and denominator are averaged over ranks, the batches of an optimiser
            step and, exponentially, over steps. false: the ratio is 1.
        smoothing: weight of the past in that average.
        mode: teacher_forced (encoders read the clean run) or free_running (they read the patched
            run, and gradients flow through them). With one target there is no difference.
        replace_from: share of the targets replaced at first, drawn anew for each batch; it rises
            to all of them over `replace_for` of the steps that have windows. At least one always is.
        later_layers: coefficient of the squared error of the residual after every later block,
            mean over these, each brought to mean norm sqrt(width) and in the objective's reduction.
        chunk_tokens: positions whose logits exist at once.
        seed: the seed for the draws of targets.
    """

    reads_windows = True
    anchor_mean: Tensor
    kl_mean: Tensor
    drawn: Tensor
    began: Tensor
    later_scale_L: Tensor | None

    def __init__(
        self,
        coefficient: NonNegative = 1.0,
        warmup: Fraction = 0.0,
        balance: bool = True,
        smoothing: Decay = 0.95,
        mode: Literal["teacher_forced", "free_running"] = "teacher_forced",
        replace_from: Fraction = 0.0,
        replace_for: Fraction = 0.5,
        later_layers: NonNegative = 0.0,
        chunk_tokens: Count = 512,
        seed: Seed = 0,
    ):
        super().__init__(coefficient, warmup)
        self.balance, self.smoothing, self.mode = balance, smoothing, mode
        self.replace_from, self.replace_for = replace_from, replace_for
        self.later_layers, self.chunk_tokens, self.seed = later_layers, chunk_tokens, seed
        self.register_buffer("anchor_mean", torch.zeros((), dtype=torch.float64))
        self.register_buffer("kl_mean", torch.zeros((), dtype=torch.float64))  # 0: not yet measured
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))  # batches with windows
        self.register_buffer("began", torch.full((), -1.0, dtype=torch.float64))  # at this progress
        self.register_buffer("later_scale_L", None)
        self._sums = torch.zeros(2, dtype=torch.float64)  # anchor and KL of this optimiser step
        self._measured = False  # whether a batch of this step has added to them
        self._lm: LanguageModel | None = None
        self._teacher: Teacher | None = None
        self._readout: Readout | None = None
        self._later: list[str] = []
        self._figures: dict[str, float] = {}

    def check(self, dictionary: TrainedDictionary) -> None:
        if self.mode == "free_running" and not dictionary.layerwise:
            raise ValueError(
                f"objective.terms.kl.mode=free_running: the code of {a(dictionary.kind)} needs all of "
                f"its sites before it replaces one; want teacher_forced"
            )

    def connect(self, lm: LanguageModel, teacher: Teacher, dictionary: TrainedDictionary) -> None:
        self._lm, self._teacher = lm, teacher
        if self.later_layers:
            first = layer_of(dictionary.targets[0])
            self._later = [f"resid_post.{layer}" for layer in range(first + 1, lm.info.n_layers)]
            if not self._later:
                raise ValueError(
                    f"objective.terms.kl.later_layers={self.later_layers}: {lm.info.name} has no "
                    f"layer after {dictionary.targets[0]}; want an earlier dict.layer, or 0"
                )
            self.later_scale_L = torch.zeros(len(self._later), dtype=torch.float64)

    def value(self, forward: Forward) -> Tensor:
        self._figures = {}
        windows = forward.windows
        if windows is None:
            return zero(forward)
        assert self._lm is not None and self._teacher is not None, "connect comes first"
        if self._readout is None:
            self._readout = Readout(self._lm, windows.tokens_BP)
        if self.began < 0:
            self.began.fill_(forward.progress)
        valid_BP = windows.valid_BP
        targets = self._teacher.targets(windows.tokens_BP, valid_BP)
        replacements = self._replacements(forward, windows)
        reads = [*self._later]
        if self.mode == "free_running":
            reads += [site for site in forward.dictionary.sources if site not in reads]
        with patched(self._lm, replacements, reads=reads, mask_BP=valid_BP) as seen:
            states_ND = self._readout.states(windows.tokens_BP)[valid_BP]
            later = {site: seen[site][valid_BP] for site in self._later}
        kl = targets.total(states_ND, self._readout, self.chunk_tokens) / len(states_ND)
        anchor = forward.reduce(forward.residual_NTD)
        loss = kl.new_zeros(())
        self._figures = {"kl": float(kl.detach()), **targets.figures()}
        if self._later:
            anchor = self._downstream(forward, windows, later)
            loss = self.later_layers * anchor
            self._figures["later_error"] = float(anchor.detach())
        # The ratio uses the KL that is recorded, even if the loss is another number (NextToken).
        recorded = kl.new_tensor(self._figures["kl"])
        ratio = self._ratio(anchor.detach(), recorded, forward.share)
        self._figures["kl_ratio"] = ratio
        return loss + ratio * kl

    def after_step(self, accepted: bool) -> None:
        if not self._measured:
            return
        sums = ranks.sum_of_all(self._sums) / ranks.count()
        self._sums.zero_()
        self._measured = False
        if not accepted or sums[1] <= 0:
            return
        past = self.smoothing if self.kl_mean > 0 else 0.0
        for mean, new in zip((self.anchor_mean, self.kl_mean), sums, strict=True):
            mean.mul_(past).add_((1 - past) * new.to(mean.device))

    def figures(self) -> dict[str, float]:
        return self._figures

    def _ratio(self, anchor: Tensor, kl: Tensor, share: Tensor | None = None) -> float:
        """The ratio. It is the same for all ranks and all batches of a step, except in the first step."""
        if not self.balance:
            return 1.0
        now = torch.stack([anchor, kl])
        now = (now if share is None else now * share).double().cpu()
        self._sums += now
        self._measured = True
        if self.kl_mean > 0:
            now = torch.stack([self.anchor_mean, self.kl_mean]).cpu()
        else:
            now = ranks.sum_of_all(now)
        return float((now[0] / now[1].clamp_min(1e-12)).clamp(SMALLEST, LARGEST))

    def _replacements(self, forward: Forward, windows: Windows) -> Mapping[str, Replacement]:
        dictionary = forward.dictionary
        which = self._drawn_targets(dictionary.n_targets, forward.progress)
        scales = windows.input_scale_S, windows.output_scale_T
        if self.mode == "free_running" and dictionary.n_targets > 1:
            return FreeRunning(dictionary, windows.valid_BP, *scales).replacements(which)
        return teacher_forced(dictionary, forward.y_hat_NTD, scales[1], windows.valid_BP, which)

    def _drawn_targets(self, n_targets: int, progress: float) -> list[int]:
        """The targets to replace: a function of seed, count of draws and progress, so it resumes."""
        draw = np.random.default_rng((self.seed, int(self.drawn)))
        self.drawn += 1
        began = float(self.began)
        done = (progress - began) / (1 - began) if began < 1 else 1.0
        rise = min(1.0, done / self.replace_for) if self.replace_for > 0 else 1.0
        share = self.replace_from + (1 - self.replace_from) * rise
        order, chances = draw.permutation(n_targets), draw.random(n_targets)
        chances[order[0]] = 0.0  # with none replaced there would be nothing to learn
        return [t for t in range(n_targets) if chances[t] < share or t == order[0]]

    def _downstream(
        self, forward: Forward, windows: Windows, later: Mapping[str, Tensor]
    ) -> Tensor:
        """Mean over later layers of the squared error that the patch leaves in their residual."""
        assert self._lm is not None and self.later_scale_L is not None
        captured = capture(self._lm, windows.tokens_BP, self._later)
        clean = [captured[site][windows.valid_BP].float() for site in self._later]
        if not self.later_scale_L.any():
            norms = [torch.linalg.vector_norm(values, dim=-1).double().mean() for values in clean]
            mean_L = torch.stack(norms)
            mean_L = mean_L if forward.share is None else mean_L * forward.share
            mean_L = ranks.sum_of_all(mean_L.cpu()) / ranks.count()
            self.later_scale_L.copy_(clean[0].shape[-1] ** 0.5 / mean_L)
        errors = [
            forward.reduce(float(scale) * (values - later[site].float()))
            for site, values, scale in zip(self._later, clean, self.later_scale_L, strict=True)
        ]
        return torch.stack(errors).mean()


def layer_of(site: str) -> int:
    """The layer in a site's name."""
    name, _, layer = site.rpartition(".")
    if not (name and layer.isdigit()):
        raise ValueError(
            f"objective.terms.kl.later_layers: {site} does not say which layer it is in; want a site "
            f"named like resid_post.3, or later_layers=0"
        )
    return int(layer)
