"""The attribution graph of a prompt: direct effects of features, errors and tokens on each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dictlearn.attribution.edges import compressed
from dictlearn.attribution.graph import Graph
from dictlearn.attribution.nodes import Nodes
from dictlearn.attribution.places import place
from dictlearn.attribution.ranking import Ranking
from dictlearn.attribution.sources import Sources
from dictlearn.attribution.sweep import Rows, Sweep, Targets
from dictlearn.attribution.targets import (
    Explained,
    Target,
    explained,
    of_features,
    text_of,
    top_logits,
)
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.linear import LinearModel, linearise

Told = Callable[[int, int], None]  # rows done, of how many


@dataclass(frozen=True)
class Settings:
    """What a graph has. The defaults are circuit-tracer's."""

    nodes: int | None = None  # features with edges of their own; None: all that are active
    logits: int = 10  # the likeliest tokens, at most
    probability: float = 0.95  # and no more of them than have this probability together
    rank_every: int = 2048  # rows between two rankings of the features that are left
    held: int = 1  # positions at the start whose features and errors are constants

    def check(self) -> None:
        """Raises ValueError, with the key's name, for a number that is out of range."""
        counts = {"logits": self.logits, "rank_every": self.rank_every}
        if self.nodes is not None:
            counts["nodes"] = self.nodes
        for key, count in counts.items():
            if count < 1:
                raise ValueError(f"{key}={count}: want at least 1")
        if self.held < 0:
            raise ValueError(f"held={self.held}: want 0 or more")
        if not 0 < self.probability <= 1:
            raise ValueError(f"probability={self.probability}: want more than 0 and at most 1")


class Prompt(NamedTuple):
    """How a prompt is shown."""

    pieces: list[str]  # the text of each token
    text: str
    vocab_size: int  # of the tokenizer


class Costs(NamedTuple):
    """What the rows of a graph take, at most."""

    rows: int
    columns: int
    bytes: int  # of the rows, before they are packed
    multiplications: float  # of the adjoint


@torch.no_grad()
def attribute(
    lm: LanguageModel,
    dictionaries: Sequence[Dictionary],
    tokens_P: Tensor,
    targets: Sequence[Target] | None = None,
    settings: Settings | None = None,
    told: Told | None = None,
) -> Graph:
    """The graph of a prompt [P] of token ids, for transcoders or CLTs in inference form.

    An edge's weight is the part of its target's input that its source contributes, with attention
    patterns and norm scales held at the prompt: of a feature's pre-activation before its bias, or
    of a logit less the mean logit. `targets` None: the likeliest next tokens.

    Raises:
        ValueError: a graph of these dictionaries, this model or these targets is not defined.
    """
    return prepare(lm, dictionaries, tokens_P, targets, settings).graph(told)


@torch.no_grad()
def prepare(
    lm: LanguageModel,
    dictionaries: Sequence[Dictionary],
    tokens_P: Tensor,
    targets: Sequence[Target] | None = None,
    settings: Settings | None = None,
) -> Prepared:
    """Everything of `attribute` but the rows: one forward pass and the encoding. Same errors."""
    settings = settings or Settings()
    settings.check()
    if tokens_P.ndim != 1 or len(tokens_P) < 2:
        raise ValueError(f"prompt: {tokens_P.numel()} tokens; want one text of at least 2")
    places = place(dictionaries, lm.info.n_layers, lm.info.width)
    tokens_P = tokens_P.to(lm.device)
    model = linearise(lm, tokens_P)
    sources = Sources(model, places, settings.held)
    if targets is None:
        targets = top_logits(lm, model, settings.logits, settings.probability)
    wanted = explained(lm, model, sources, targets)
    prompt = Prompt(
        [text_of(lm, token) for token in tokens_P.tolist()],
        text_of(lm, *tokens_P.tolist()),
        lm.info.vocab_size if lm.tokenizer is None else lm.tokenizer.vocab_size,
    )
    n = min(settings.nodes or len(sources.features), len(sources.features))
    return Prepared(model, sources, wanted, prompt, n, settings.rank_every)


class Prepared:
    """A prompt whose rows can be made: those of targets, then of features by their influence."""

    def __init__(
        self,
        model: LinearModel,
        sources: Sources,
        wanted: Explained,
        prompt: Prompt,
        n: int,
        rank_every: int,
    ) -> None:
        self.model, self.sources, self.wanted, self.n = model, sources, wanted, n
        self.prompt = prompt
        self.sweep = Sweep(model, sources, n + len(wanted.names))
        self.constants = _constants(sources)
        self.every = n if n == len(sources.features) else rank_every
        device, n_active = model.embedded.device, len(sources.features)
        self.visited = torch.zeros(n_active, dtype=torch.bool, device=device)
        self.rows: list[tuple[Tensor, Tensor]] = []  # (which, edges); targets after the features
        weights = [name.weight for name in wanted.names]
        self.ranking = Ranking(
            sources.feature, model.embedded.new_tensor(weights), sources.ends[-1]
        )
        self.conservation = 0.0

    @property
    def costs(self) -> Costs:
        """Known before any row is made. A row costs half of all layers and positions on average."""
        rows, columns = self.n + len(self.wanted.names), self.sources.ends[-1]
        attention, P = self.model.blocks[0].attention, len(self.model.tokens)
        heads = (attention.heads + attention.groups) * attention.head_width
        per_place = self.model.width * heads + attention.heads * attention.head_width * P / 4
        places = len(self.model.blocks) * P / 4
        reads = columns * self.model.width / 4
        size = rows * columns * self.model.embedded.element_size()
        return Costs(rows, columns, size, rows * (places * per_place + reads))

    @torch.no_grad()
    def graph(self, told: Told | None = None) -> Graph:
        """Makes the rows; once only."""
        told = told or (lambda done, total: None)
        n_active = len(self.sources.features)
        for rows in self.sweep.rows(self.wanted.targets):
            self._conserve(rows, self.wanted.targets, self.wanted.wanted)
            self.ranking.add_targets(rows)
            self.rows.append((n_active + rows.target, rows.edges))
        done = 0
        while done < self.n:
            pending = self._next(min(self.every, self.n - done))
            self._trace(pending, done, told)
            done += len(pending)
        return self._packed()

    def _next(self, count: int) -> Tensor:
        if count == len(self.visited):
            return torch.arange(count, device=self.visited.device)
        influence = self.ranking.arrived()[self.sources.feature]
        order = influence.argsort(descending=True)
        return order[~self.visited[order]][:count]

    def _trace(self, pending: Tensor, done: int, told: Told) -> None:
        targets, wanted = of_features(self.sources, pending)
        for rows in self.sweep.rows(targets):
            self._conserve(rows, targets, wanted)
            nodes = pending[rows.target]
            self.ranking.add(nodes, targets.level[rows.target], rows.edges)
            self.rows.append((nodes, rows.edges))
            done += len(nodes)
            told(done, self.n)
        self.visited[pending] = True

    def _conserve(self, rows: Rows, targets: Targets, wanted: Tensor) -> None:
        """Rows, and what reaches their targets from constants, sum to what the model computed."""
        some = targets.at(rows.target)
        constant = (self.constants[some.level, some.position] * some.vector).sum(1)
        error = (rows.edges.sum(1) + constant - wanted[rows.target]).abs().max()
        scale = wanted.abs().max().clamp_min(1e-30)
        self.conservation = max(self.conservation, float(error / scale))

    def _packed(self) -> Graph:
        sources, L, P = self.sources, self.sources.places.n_layers, len(self.model.tokens)
        chosen = self.visited.nonzero()[:, 0]
        n, n_active = len(chosen), len(self.visited)
        node = torch.full((n_active + len(self.wanted.names),), -1, device=chosen.device)
        node[chosen] = torch.arange(n, device=chosen.device)
        node[n_active:] = torch.arange(n + L * P + P, n + L * P + P + len(self.wanted.names))
        column_node = torch.full((sources.ends[-1],), -1, device=chosen.device)
        column_node[sources.feature[chosen]] = node[chosen]
        column_node[sources.error.flatten()] = torch.arange(n, n + L * P, device=chosen.device)
        column_node[sources.token] = torch.arange(n + L * P, n + L * P + P, device=chosen.device)
        features = sources.features
        nodes = Nodes(
            self.model.tokens.cpu(),
            self.prompt.pieces,
            self.prompt.text,
            L,
            self.prompt.vocab_size,
            features.layer[chosen].cpu(),
            features.position[chosen].cpu(),
            features.index[chosen].cpu(),
            features.value[chosen].cpu(),
            self.wanted.names,
        )
        parts = [(node[which], edges) for which, edges in self.rows]
        return Graph(
            nodes,
            compressed(parts, column_node, len(nodes)),
            n_active,
            self._left_out(),
            self.conservation,
        )

    def _left_out(self) -> float:
        """The share of the influence on features that arrives at those without rows."""
        if bool(self.visited.all()):
            return 0.0
        arrived = self.ranking.arrived()[self.sources.feature]
        return float(arrived[~self.visited].sum() / arrived.sum().clamp_min(1e-30))


def _constants(sources: Sources) -> Tensor:
    """The stream if nothing but constants were written, [levels, P, D]: biases and held positions."""
    model, k = sources.model, torch.zeros_like(sources.model.embedded)
    if model.positions is not None:
        k = k + model.positions
    levels = []
    for m, block in enumerate(model.blocks):
        mid = k + block.attention(k) + block.attention.constant
        levels += [k, mid]
        post = mid + sources.constants[m]
        skip = sources.places.skip(m)
        if skip is not None:
            through = sources.places.entry(model, m)
            read = mid if through.after_attention else k
            read = read if through.norm is None else through.norm(read)
            post = post + read @ skip.to(k.dtype).T
        k = post
    return torch.stack([*levels, k])
