"""Activations whose true features are known, so that a dictionary can be compared with them.

The construction follows SynthSAEBench (2602.14687): there are more unit features than dimensions,
they fire with Zipf probabilities and are correlated through a Gaussian copula, and children fire
only with their parent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from dictlearn.ranges import Count, Fraction, Natural, NonNegative
from dictlearn.types import Batch, ModelInfo

SITE = "synthetic"
BLOCK = 1024  # rows drawn from one seed
CHILDREN = 0.8  # the largest fraction of a parent's firings at which a child fires too


@final
@dataclass(frozen=True)
class Firing:
    """How often features fire, and how correlated they are.

    Probabilities fall from the `first` feature to the `last` as rank ** -zipf_exponent does.
    A feature fires when its latent Gaussian lies in an interval. `correlation`, 0 to below 1, is the
    share of the latents' variance that comes from `correlation_rank` common causes. It doesn't change
    the probabilities, except those of children that are correlated with their parent.
    """

    first: Fraction = 0.3
    last: Fraction = 0.01
    zipf_exponent: NonNegative = 0.5
    correlation: Fraction = 0.1
    correlation_rank: Natural = 4

    def __post_init__(self) -> None:
        if not 0 < self.last <= self.first < 1:
            raise ValueError(
                f"source.firing.first={self.first} and source.firing.last={self.last}: "
                "want 0 < last <= first < 1"
            )
        if not 0 <= self.correlation < 1:
            raise ValueError(
                f"source.firing.correlation={self.correlation}: want 0 <= correlation < 1"
            )


@final
@dataclass(frozen=True)
class Trees:
    """Features that fire only with their parent.

    The first features form `roots` trees with `branching` children per node and `depth` levels
    below the roots, level after level. A child has its Zipf probability, lowered if need be so that
    its parent fires alone at least a fifth of the time. At most one of `exclusive` siblings fires
    at a time. With `scale_children` a child's magnitude is proportional to its parent's.
    """

    roots: Natural = 0
    branching: Count = 4
    depth: Natural = 1
    exclusive: bool = True
    scale_children: bool = True


@final
@dataclass(frozen=True)
class Magnitudes:
    """Mean magnitude from the `first` feature to the `last`; each varies by |N(std, std)|."""

    first: NonNegative = 5.0
    last: NonNegative = 4.0
    std: NonNegative = 0.5


@final
class SyntheticSource:
    """x = sum of firing features * magnitudes + bias + noise; the target is x too.

    Row i is a pure function of the settings and i, whatever the batch size is, and the state is the
    number of rows taken. Features come in descending order of probability.

    Args:
        n_features, width: F and D of the true features.
        bias: norm of the constant vector that is added to all rows.
        noise: standard deviation of Gaussian noise in every dimension.
        orthogonal_steps: gradient steps that lower the squared cosines between features.
        device: where rows are drawn; a GPU draws other numbers than a CPU.

    Raises:
        ValueError: for settings that contradict each other.
    """

    reads_model = False
    gives_windows = False

    def __init__(
        self,
        lm: object = None,
        windows: object = None,
        *,
        batch_tokens: int,
        seed: int,
        sources: tuple[str, ...] = (SITE,),
        targets: tuple[str, ...] = (SITE,),
        n_features: Count = 64,
        width: Count = 32,
        firing: Firing = Firing(),
        trees: Trees = Trees(),
        magnitudes: Magnitudes = Magnitudes(),
        bias: NonNegative = 0.5,
        noise: NonNegative = 0.05,
        orthogonal_steps: Natural = 100,
        device: str = "cpu",
    ):
        del lm, windows  # every source takes these; this one reads no text
        if len(sources) != 1 or tuple(sources) != tuple(targets):
            raise ValueError(
                f"dict: source=synthetic has one site, which is its own target; this dictionary "
                f"reads {', '.join(sources)} and writes {', '.join(targets)}"
            )
        if seed < 0:
            raise ValueError(f"seed={seed}: want 0 or more")
        self.sources, self.targets = tuple(sources), tuple(targets)
        self.batch_tokens, self.device = batch_tokens, torch.device(device)
        self._seed, self._position = seed, 0
        self._rank, self._ranks = 0, 1
        self._block: tuple[int, Tensor] | None = None  # number and rows of the latest block
        self._base = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._noise, self._scale_children = noise, trees.scale_children
        levels = tree_levels(n_features, trees)
        self._levels = [(c.to(self.device), p.to(self.device)) for c, p in levels]

        draw = self._generator(0, "cpu")
        truth = spread(torch.randn(n_features, width, generator=draw), orthogonal_steps)
        self.truth = truth.to(self.device)
        bias_D = torch.randn(width, generator=draw)
        self._bias_D = (bias * bias_D / bias_D.norm()).to(self.device)
        self._draw_magnitudes(magnitudes, draw)
        self._draw_firing(firing, levels, trees.exclusive, draw)

    def _draw_magnitudes(self, magnitudes: Magnitudes, draw: torch.Generator) -> None:
        n_features = len(self.truth)
        self._mean_F = torch.linspace(
            magnitudes.first, magnitudes.last, n_features, device=self.device
        )
        std_F = magnitudes.std * (1 + torch.randn(n_features, generator=draw))
        self._std_F = std_F.abs().to(self.device)

    def _draw_firing(
        self, firing: Firing, levels: Levels, exclusive: bool, draw: torch.Generator
    ) -> None:
        n_features, correlation = len(self.truth), firing.correlation
        causes_RF = torch.randn(firing.correlation_rank, n_features, generator=draw)
        self._causes_RF = (correlation**0.5 * causes_RF / causes_RF.norm(dim=0)).to(self.device)
        self._alone = (1 - correlation) ** 0.5
        wanted_F = zipf(n_features, firing.first, firing.last, firing.zipf_exponent)
        probability_F, decides_F, low_F, high_F = firing_intervals(wanted_F, levels, exclusive)
        self.probability_F = probability_F.to(self.device)
        self._decides_F = decides_F.to(self.device)
        self._low_F = torch.special.ndtri(low_F).float().to(self.device)
        self._high_F = torch.special.ndtri(high_F).float().to(self.device)

    @property
    def width(self) -> int:
        return self.truth.shape[1]

    @property
    def info(self) -> ModelInfo:
        """Sizes for building a dictionary, in place of those of a language model."""
        return ModelInfo(SITE, None, SITE, 1, self.width, vocab_size=0, context_length=0)

    def shard(self, rank: int, ranks: int) -> None:
        """Every rank takes each `ranks`-th block of rows."""
        if (rank, ranks) != (self._rank, self._ranks):
            self._rank, self._ranks, self._block = rank, ranks, None

    def next_batch(self) -> Batch:
        batch = self._rows(self._position, self.batch_tokens)
        self._position += self.batch_tokens
        return batch

    def state(self) -> dict[str, int]:
        return {"position": self._position, "seed": self._seed}

    def restore(self, state: dict[str, int]) -> None:
        if state["seed"] != self._seed:
            raise ValueError(f"seed={self._seed}: the run to resume had {state['seed']}")
        self._position = state["position"]

    def sample(self, n: int) -> Batch:
        return self._rows(0, n)

    def _rows(self, start: int, n: int) -> Batch:
        x_NSD = torch.empty(n, 1, self.width, device=self.device)
        filled = 0
        while filled < n:
            number, within = divmod(start + filled, BLOCK)
            if self._block is None or self._block[0] != number:
                self._block = number, self._draw(number)[1]
            rows = self._block[1][within : within + n - filled]
            x_NSD[filled : filled + len(rows), 0] = rows
            filled += len(rows)
        zeros_N = torch.zeros(n, dtype=torch.int64, device=self.device)  # for tokens and positions
        return Batch(x_NSD, None, zeros_N, zeros_N)

    def _draw(self, number: int) -> tuple[Tensor, Tensor]:
        """Block `number` of this rank: (true code [BLOCK, F], activations [BLOCK, D])."""
        draw = self._generator(1 + number * self._ranks + self._rank, self.device)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=draw, device=self.device)

        n_causes, n_features = self._causes_RF.shape
        z_NF = normal(BLOCK, n_causes) @ self._causes_RF
        z_NF += self._alone * normal(BLOCK, n_features)
        z_NF = z_NF[:, self._decides_F]
        fires_NF = (self._low_F <= z_NF) & (z_NF < self._high_F)
        for children, parents in self._levels:
            fires_NF[:, children] &= fires_NF[:, parents]
        rows, features = fires_NF.nonzero(as_tuple=True)
        magnitudes = (self._mean_F[features] + self._std_F[features] * normal(len(rows))).abs()
        code_NF = torch.zeros_like(z_NF).index_put_((rows, features), magnitudes)
        if self._scale_children:
            for children, parents in self._levels:
                code_NF[:, children] *= code_NF[:, parents] / self._mean_F[parents]
        x_ND = code_NF @ self.truth + self._bias_D + self._noise * normal(BLOCK, self.width)
        return code_NF, x_ND

    def _generator(self, number: int, device: torch.device | str) -> torch.Generator:
        # A CPU generator keeps 32 bits of a seed; consecutive seeds don't collide, hashes could.
        return torch.Generator(device).manual_seed((self._base + number) % 2**32)


def zipf(n: int, first: float, last: float, exponent: float) -> Tensor:
    """Values that fall from `first` to `last` as rank ** -exponent does: float64 [n]."""
    shape = torch.arange(1, n + 1, dtype=torch.float64) ** -exponent
    if n == 1 or exponent == 0:
        return torch.full_like(shape, first)
    return last + (first - last) * (shape - shape[-1]) / (shape[0] - shape[-1])


def spread(features_FD: Tensor, steps: int) -> Tensor:
    """Lowers the squared cosines between unit rows by gradient descent on the frame potential.

    The minimum is a tight frame, or an orthonormal set if there are no more rows than dimensions.
    """
    features_FD = features_FD / features_FD.norm(dim=1, keepdim=True)
    for _ in range(steps):
        frame_DD = features_FD.T @ features_FD
        step = 0.5 / torch.linalg.matrix_norm(frame_DD, 2)
        features_FD = features_FD - step * (features_FD @ frame_DD)
        features_FD = features_FD / features_FD.norm(dim=1, keepdim=True)
    return features_FD


Levels = list[tuple[Tensor, Tensor]]  # (children, the parent of each), top down


def tree_levels(n_features: int, trees: Trees) -> Levels:
    """Trees over the first features, level by level; siblings have consecutive numbers."""
    levels: Levels = []
    start, size = 0, trees.roots
    for _ in range(trees.depth if trees.roots else 0):
        parents = torch.arange(start, start + size).repeat_interleave(trees.branching)
        start, size = start + size, size * trees.branching
        levels.append((torch.arange(start, start + size), parents))
    if start + size > n_features:
        raise ValueError(
            f"source.n_features={n_features} is too few for source.trees.roots={trees.roots} trees "
            f"of source.trees.branching={trees.branching} and source.trees.depth={trees.depth}, "
            f"which have {start + size}"
        )
    return levels


def firing_intervals(
    wanted_F: Tensor, levels: Levels, exclusive: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(probability_F, decides_F, low_F, high_F).

    Feature i fires when its parent fires and low[i] <= u[decides[i]] < high[i], where u holds a
    uniform number from (0, 1) per feature. Exclusive siblings share one number and have disjoint
    intervals. The probabilities are exact if the numbers are independent.
    """
    probability_F = wanted_F.clone()
    decides_F = torch.arange(len(wanted_F))
    low_F, high_F = torch.zeros_like(wanted_F), wanted_F.clone()
    for children, parents in levels:
        siblings = len(children) // len(parents.unique())
        given_parent = (wanted_F[children] / probability_F[parents]).view(-1, siblings)
        if exclusive:
            together = given_parent.sum(1, keepdim=True)
            given_parent = given_parent * (CHILDREN / together).clamp(max=1)
            high_F[children] = given_parent.cumsum(1).flatten()
            low_F[children] = high_F[children] - given_parent.flatten()
            decides_F[children] = children.view(-1, siblings)[:, 0].repeat_interleave(siblings)
        else:
            given_parent = given_parent.clamp(max=CHILDREN)
            high_F[children] = given_parent.flatten()
        probability_F[children] = given_parent.flatten() * probability_F[parents]
    return probability_F, decides_F, low_F, high_F
