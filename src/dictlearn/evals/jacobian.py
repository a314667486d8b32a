"""Compares the Jacobian of a dictionary with that of the MLPs it replaces.

The figure is the cosine, on each token, of vec J and vec J'. J is the derivative of the outputs of
the model's MLPs by their inputs, and J' the dictionary's, with its active features fixed. For a
transcoder or a MOLT, J is that of one MLP. For several layers J has every target in its rows and
every source in its columns: the model's is block diagonal, as each MLP reads only its own input when
those of the others are held fixed. A cross-layer transcoder's is lower triangular. Its features of
one layer that write to a later one, past that layer's MLP, are off the diagonal: such shortcuts lower
the cosine however good the reconstruction (Lange et al. 2026: sparsity rewards a CLT for them).

Rows are in units of their target's standard deviation, so that no layer drowns the others. J is
never formed: with probes u of independent signs E<J^T u, J'^T u> = <J, J'> (Hutchinson), and both
products are vector-Jacobian products. They are summed over probes before the ratio is taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from dictlearn.evals.context import EvalContext, EvalResult
from dictlearn.evals.moments import Spread, double
from dictlearn.evals.observe import window_batches
from dictlearn.lm.capture import capture
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.patch import Replacement, patched
from dictlearn.ranges import Count
from dictlearn.types import DictionaryLike

READ, WRITTEN = "mlp_in.", "mlp_out."


@final
@dataclass(frozen=True)
class JacobianCosine:
    """Figures `jacobian_cosine`, `jacobian_cosine/<target>` of several, and `jacobian_across`.

    `jacobian_across` is the share of the dictionary's squared Jacobian that joins different layers.

    Args:
        tokens: valid positions to measure at, drawn by the seed.
        windows: windows to draw them from, evenly spread over the held-out text.
        probes: random probes per token. If this is at least the activations' width, the basis
            vectors are used instead, and the figures are exact.

    Only dictionaries from mlp_in sites to the mlp_out of the same layers get figures.
    """

    tokens: Count = 256
    windows: Count = 16
    probes: Count = 8

    def __call__(self, context: EvalContext) -> EvalResult:
        dictionary, lm = context.dictionary, context.lm
        if not joins_mlps(dictionary):
            return EvalResult()
        assert lm is not None, "the model's Jacobian needs the model"
        random = torch.Generator().manual_seed(context.seed)
        spread, parts = Spread(), []
        for x_NSD, y_NTD in self._sample(context, lm, random):
            spread.update(y_NTD)
            parts.append(products(lm, dictionary, x_NSD, self.probes, random))
        if spread.n < 2:
            return EvalResult()
        weight_T = (spread.n / spread.squares_T).cpu()  # 1 / variance of each target
        pooled = Products(*map(torch.cat, zip(*parts, strict=True)))
        figures = {
            "jacobian_cosine": float(pooled.cosine_N(weight_T).mean()),
            "jacobian_across": pooled.share_across(weight_T),
        }
        if len(dictionary.targets) > 1:
            for t, target in enumerate(dictionary.targets):
                alone_T = torch.zeros_like(weight_T)
                alone_T[t] = 1.0
                cosine_N = pooled.cosine_N(alone_T)
                figures[f"jacobian_cosine/{target}"] = float(cosine_N.mean())
        return EvalResult(figures=figures)

    def _sample(
        self, context: EvalContext, lm: LanguageModel, random: torch.Generator
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields (x_NSD, y_NTD) at random positions, the same however batched; N is at most P."""
        assert context.windows is not None, "the Jacobian is taken on held-out text"
        sources, targets = context.dictionary.sources, context.dictionary.targets
        length = context.windows.context
        batches = window_batches(context.windows, self.windows * length, 1)
        each = -(-self.tokens // max(len(batches), 1))
        for indices in batches:
            tokens_BP = context.windows.window_batch(indices)
            position_K = context.windows.kept(indices)[0].nonzero().squeeze(1)
            order_K = torch.randperm(len(position_K), generator=random)
            chosen_N = position_K[order_K.to(position_K.device)[:each]]
            if len(chosen_N) == 0:
                continue
            acts = capture(lm, tokens_BP, tuple(dict.fromkeys((*sources, *targets))))
            chosen_N = chosen_N.to(lm.device)
            x_NSD = torch.stack([acts[site][0, chosen_N] for site in sources], 1)
            y_NTD = torch.stack([acts[site][0, chosen_N] for site in targets], 1)
            yield x_NSD, y_NTD


class Products(NamedTuple):
    """Products of the Jacobians per token and target, summed over probes and sources: float64 [N, T]."""

    both: Tensor  # <J^T u, J'^T u>
    model: Tensor  # |J^T u|^2
    dictionary: Tensor  # |J'^T u|^2
    across: Tensor  # the part of the last from sources of other layers

    def cosine_N(self, weight_T: Tensor) -> Tensor:
        """Cosine of J and J' with rows of target t weighted by weight_T[t]; 0 where either is zero."""
        both, model, dictionary = (p @ weight_T for p in (self.both, self.model, self.dictionary))
        return both / (model * dictionary).sqrt().clamp(min=torch.finfo(both.dtype).tiny)

    def share_across(self, weight_T: Tensor) -> float:
        total = float((self.dictionary @ weight_T).sum())
        return float((self.across @ weight_T).sum()) / total if total > 0 else 0.0


def products(
    lm: LanguageModel,
    dictionary: DictionaryLike,
    x_NSD: Tensor,
    n_probes: int,
    random: torch.Generator,
) -> Products:
    """Products of the MLPs' and the dictionary's Jacobians at N tokens, whose sources are x_NSD."""
    own = own_sources(dictionary)
    reads = x_NSD.detach().float().requires_grad_()
    with torch.enable_grad():
        written = run_mlps(lm, dictionary, x_NSD)
        y_hat_NTD = dictionary.decode(dictionary.encode(reads), reads)
    y_hat = y_hat_NTD.unbind(1)
    n, n_targets, width = y_hat_NTD.shape
    sums = {name: torch.zeros(n, n_targets, dtype=torch.float64) for name in Products._fields}
    for i in range(min(n_probes, width)):
        if n_probes >= width:
            probe_NTD = torch.eye(width)[i].expand(n, n_targets, width)
        else:
            probe_NTD = torch.randint(2, (n, n_targets, width), generator=random) * 2.0 - 1.0
        probe_NTD = probe_NTD.to(y_hat_NTD)
        for t, (x, y) in enumerate(written):
            model_ND = _vjp(y, x, probe_NTD[None, :, t].to(y.dtype))[0]
            dictionary_NSD = double(_vjp(y_hat[t], reads, probe_NTD[:, t]))
            square_NS = dictionary_NSD.square().sum(-1).cpu()
            model_ND = double(model_ND)
            sums["both"][:, t] += (model_ND * dictionary_NSD[:, own[t]]).sum(-1).cpu()
            sums["model"][:, t] += model_ND.square().sum(-1).cpu()
            sums["dictionary"][:, t] += square_NS.sum(1)
            sums["across"][:, t] += square_NS.sum(1) - square_NS[:, own[t]]
    return Products(**sums)


def run_mlps(
    lm: LanguageModel, dictionary: DictionaryLike, x_NSD: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """(input, output) of each target's MLP, [1, N, D], with a graph from input to output.

    MLPs treat every position alike, so the tokens replace their inputs as one window, wherever they
    come from: each MLP's graph is of these N positions, begins at its own input and ends at its own
    output.
    """
    reads: dict[str, Tensor] = {}
    writes: dict[str, Tensor] = {}

    def fed(name: str, x_ND: Tensor) -> Replacement:
        def replace(_: object, clean: Tensor) -> Tensor:
            reads[name] = x_ND[None].detach().to(clean.dtype).requires_grad_()
            return reads[name]

        return replace

    def recorded(name: str) -> Replacement:
        def replace(_: object, clean: Tensor) -> Tensor:
            writes[name] = clean
            return clean.detach()

        return replace

    own, targets = own_sources(dictionary), dictionary.targets
    sources = [dictionary.sources[s] for s in own]
    replacements = {name: fed(name, x_NSD[:, s]) for name, s in zip(sources, own, strict=True)}
    replacements |= {name: recorded(name) for name in targets}
    anything_BP = torch.zeros(1, len(x_NSD), dtype=torch.int64, device=lm.device)
    with patched(lm, replacements), torch.autocast(lm.device.type, enabled=False):
        lm.trunk(**lm.inputs(anything_BP))
    return [
        (reads[source], writes[target]) for source, target in zip(sources, targets, strict=True)
    ]


def _vjp(y: Tensor, x: Tensor, probe: Tensor) -> Tensor:
    """J^T probe; zero where y does not depend on x."""
    if not y.requires_grad:
        return torch.zeros_like(x)
    (gradient,) = torch.autograd.grad(y, x, probe, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if gradient is None else gradient


def joins_mlps(dictionary: DictionaryLike) -> bool:
    """Whether the sources are inputs of MLPs and the targets outputs of the same MLPs."""
    sources, targets = dictionary.sources, dictionary.targets
    if not all(site.startswith(READ) for site in sources):
        return False
    return all(site.startswith(WRITTEN) and _source_of(site) in sources for site in targets)


def own_sources(dictionary: DictionaryLike) -> list[int]:
    """The index of each target's own source: the input of the same MLP."""
    return [dictionary.sources.index(_source_of(target)) for target in dictionary.targets]


def _source_of(target: str) -> str:
    return READ + target.removeprefix(WRITTEN)
