"""One dictionary in training: its loss on a batch, and how long its features have been silent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, final

import torch
from dictlearn_kernels import fixed_point, rounded
from torch import Tensor, nn

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.encoder import ON_A_GPU
from dictlearn.dicts.start import start_from
from dictlearn.objectives.objective import Objective
from dictlearn.objectives.protocol import Forward, Windows
from dictlearn.sparsity import ranks
from dictlearn.train.normaliser import Normaliser
from dictlearn.types import Batch, Norms

SELECTIONS = {
    "auto": None,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int16": fixed_point.DTYPE,
}


class Outcome(NamedTuple):
    loss: Tensor  # scalar
    terms: dict[str, Tensor]  # each weighted; they add up to the loss
    forward: Forward
    share_of_windows: Tensor | None = (
        None  # of the pass that terms of whole windows read, as `share`
    )


@final
class Trainee(nn.Module):
    """A dictionary with its normaliser, objective and count of tokens since each feature fired.

    Several can train on one stream of batches, independently.
    """

    tokens_since_fired_SF: Tensor  # int64
    loss_scale: Tensor
    start_fvu: Tensor  # FVU of the run's first step, float64; 0 if that was refused

    def __init__(
        self,
        dictionary: Dictionary,
        objective: Objective,
        normalise: str,
        dead_after: int,
        selection: str = "auto",
    ):
        super().__init__()
        objective.check(dictionary)
        self.dictionary, self.objective, self.dead_after = dictionary, objective, dead_after
        self.selection = SELECTIONS[selection]
        self.normaliser = Normaliser(dictionary.n_sources, dictionary.n_targets, normalise)
        silent_SF = torch.zeros(dictionary.code_sources, dictionary.n_features, dtype=torch.int64)
        self.register_buffer("tokens_since_fired_SF", silent_SF)
        self.register_buffer("loss_scale", torch.ones((), dtype=torch.float64))
        self.register_buffer("start_fvu", torch.zeros((), dtype=torch.float64))
        self._first_fvu: Tensor | None = None
        # The same as a number: reading the buffer in every step would synchronise with the GPU.
        self._loss_scale: float | None = None
        self.register_load_state_dict_post_hook(lambda *_: self._forget_loss_scale())
        self._fired_SF = torch.zeros_like(silent_SF, dtype=torch.bool)
        self._tokens = 0

    @torch.no_grad()
    def begin(
        self,
        batch: Batch,
        start: Dictionary | None = None,
        norms: Mapping[str, Norms] | None = None,
    ) -> None:
        """Measures scales and sets the biases, from activations that the run will train on.

        `start` is a dictionary in inference form; training begins with its parameters instead. With
        the `norms` of all sites, these and not the batch's give the scales.
        """
        sides = (self.dictionary.sources, self.dictionary.targets)
        known = [[norms[site] for site in side] for side in sides] if norms else None
        self.normaliser.fit(batch, known)
        if start is None:
            y_NTD = self.normaliser.targets(batch)
            self.dictionary.initialise(y_NTD)
        else:
            x_NSD, y_NTD = self.normaliser(batch)
            start_from(self.dictionary, self._unfolded(start.to(x_NSD.device)), x_NSD)
        self.loss_scale.fill_(self.objective.loss_scale(y_NTD))
        self._forget_loss_scale()

    def _forget_loss_scale(self) -> None:
        self._loss_scale = None

    def _unfolded(self, start: Dictionary) -> Dictionary:
        """`start` in the units of this training: folding with the inverse scales undoes folding."""
        return start.folded(1 / self.normaliser.input_scale_S, 1 / self.normaliser.output_scale_T)

    @property
    def dead_SF(self) -> Tensor:
        """Features silent for `dead_after` tokens."""
        return self.tokens_since_fired_SF >= self.dead_after

    def forward(self, batch: Batch, progress: float) -> Outcome:
        """The loss of a batch, at `progress` (0 to 1) through the run."""
        device = batch.x_NSD.device.type
        # Low precision is for the one large matmul; codes, losses and gradients stay in float32.
        self.dictionary.encoder.matmul_dtype = self._matmul_dtype(device)
        with torch.autocast(device, enabled=False):
            return self._forward(batch, progress)

    @property
    def rounds_to(self) -> torch.dtype | None:
        """The dtype that selection rounds W_enc to in every step; None if it does not, or off a GPU."""
        W_enc = self.dictionary.encoder.W_enc
        dtype = self.selection or ON_A_GPU
        rounds = W_enc.is_cuda and W_enc.dtype == torch.float32 and dtype in rounded.LOW
        return dtype if rounds else None

    def _matmul_dtype(self, device: str) -> torch.dtype | None:
        """The dtype that `selection` sets; None if the encoder knows the fastest. Else autocast's."""
        encoder_knows = device == "cuda" or (device == "cpu" and fixed_point.available())
        if self.selection is not None or encoder_knows or not torch.is_autocast_enabled(device):
            return self.selection
        return torch.get_autocast_dtype(device)

    def _forward(self, batch: Batch, progress: float) -> Outcome:
        self.dictionary.sparsity.anneal(progress)
        forward = self._pass(batch, progress)
        beside = None if batch.beside is None else self._pass(batch.beside, progress)
        terms = self.objective(forward, beside)
        share = (beside or forward).share
        return Outcome(torch.stack(list(terms.values())).sum(), terms, forward, share)

    def _pass(self, batch: Batch, progress: float) -> Forward:
        x_NSD, y_NTD = self.normaliser(batch)
        if self._loss_scale is None:
            self._loss_scale = float(self.loss_scale)
        encoding = self.dictionary.encode_training(x_NSD)
        self._note_fired(encoding.code.pattern.columns, len(x_NSD))
        # Batches of shuffled tokens are equally large in all processes; those of windows need not be.
        of_windows = batch.tokens_BP is not None
        return Forward(
            dictionary=self.dictionary,
            x_NSD=x_NSD,
            y_NTD=y_NTD,
            encoding=encoding,
            dead_SF=self.dead_SF,
            progress=progress,
            loss_scale=self._loss_scale,
            windows=self._windows(batch),
            share=ranks.share_of_all(len(x_NSD), x_NSD.device) if of_windows else None,
        )

    def _windows(self, batch: Batch) -> Windows | None:
        if batch.tokens_BP is None or batch.valid_BP is None:
            return None
        scales = self.normaliser.input_scale_S, self.normaliser.output_scale_T
        return Windows(batch.tokens_BP, batch.valid_BP, *scales)

    def _note_fired(self, columns: Tensor, n_tokens: int) -> None:
        self._fired_SF = self._fired_SF.to(columns.device)
        self._fired_SF.view(-1)[columns] = True
        self._tokens += n_tokens

    def after_step(self, accepted: bool) -> None:
        """Counts silent tokens; called once an optimiser step, not once a batch.

        A step that was refused (a gradient that isn't finite) leaves every counter as it was.
        """
        if accepted:
            fired_SF, tokens = self._of_all_processes()
            self.tokens_since_fired_SF += tokens
            self.tokens_since_fired_SF.masked_fill_(fired_SF, 0)
            if self._first_fvu is not None:
                self.start_fvu.copy_(self._first_fvu)
        self._first_fvu = None
        self.objective.after_step(accepted)
        self._fired_SF.zero_()
        self._tokens = 0

    def _of_all_processes(self) -> tuple[Tensor, Tensor | int]:
        """Which features have fired in this step, and on how many tokens, in all processes."""
        if not ranks.several():
            return self._fired_SF, self._tokens
        # One tensor for both, which stays where it is: nobody waits for it.
        counts = nn.functional.pad(self._fired_SF.flatten().int(), (0, 1), value=self._tokens)
        torch.distributed.all_reduce(counts)
        return counts[:-1].view_as(self._fired_SF) > 0, counts[-1]

    @torch.no_grad()
    def note_start(self, outcome: Outcome) -> None:
        """Keeps a batch's FVU until its step is taken; divergence is measured against it."""
        self._first_fvu = _fvu(outcome.forward)

    @torch.no_grad()
    def metrics(self, outcome: Outcome) -> dict[str, float]:
        """Training metrics of one batch, in normalised units. They cost a few passes over the batch.

        l0 counts all sources' features, as the final figures do. The batch is that of all processes,
        which must call this together.
        """
        forward = outcome.forward
        metrics = {
            "loss": outcome.loss,
            **{f"loss/{name}": term for name, term in outcome.terms.items()},
            "fvu": _fvu(forward),
            "l0": forward.encoding.code.l0_NS.double().sum(1).mean(),
            "dead": forward.dead_SF.double().mean(),
        }
        figures = {name: float(value.detach()) for name, value in metrics.items()}
        own = self.objective.figures()
        if not ranks.several():
            return {**figures, **own}
        shares = {"l0": forward.share, **dict.fromkeys(own, outcome.share_of_windows)}
        return _means_of_all({**figures, **own}, shares)

    def inference_form(self, batches: Callable[[], Iterable[Batch]]) -> Dictionary:
        """The dictionary in the model's own units, calibrated on held-out batches."""
        frozen = self.dictionary.inference_form(
            lambda: (self.normaliser(batch)[0] for batch in batches())
        )
        frozen.after_step()
        return frozen.folded(self.normaliser.input_scale_S, self.normaliser.output_scale_T)


def _means_of_all(
    figures: Mapping[str, float], shares: Mapping[str, Tensor | None]
) -> dict[str, float]:
    """The means over all processes, each figure weighted by this process's share of the tokens."""
    own = [
        value if shares.get(name) is None else value * float(shares[name])  # type: ignore[arg-type]
        for name, value in figures.items()
    ]
    means = ranks.sum_of_all(torch.tensor(own, dtype=torch.float64)) / ranks.count()
    return dict(zip(figures, means.tolist(), strict=True))


def _fvu(forward: Forward) -> Tensor:
    """Squared error over the targets' variance, both of all processes' tokens."""
    error, y_NTD = forward.residual_NTD.square().sum(), forward.y_NTD
    if not ranks.several():
        return error / (y_NTD - y_NTD.mean(0)).square().sum()
    tokens = y_NTD.new_tensor([len(y_NTD)], dtype=torch.float64)
    sums = ranks.sum_of_all(torch.cat([y_NTD.double().sum(0).flatten(), tokens]))
    mean_TD = (sums[:-1] / sums[-1]).view_as(y_NTD[0])
    variance = (y_NTD.double() - mean_TD).square().sum()
    of_all = ranks.sum_of_all(torch.stack([error.double(), variance]))
    return of_all[0] / of_all[1]
