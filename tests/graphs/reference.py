"""Rows of attribution graphs by autograd through the real modules, in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from dictlearn.attribution.graph import Graph
from dictlearn.dicts.dictionary import Dictionary
from dictlearn.lm.capture import capture
from dictlearn.lm.frozen import Frozen
from dictlearn.lm.hooks import attach
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.sites import resolve
from dictlearn.sparsity.relu import ReLU
from tests.families import build


@contextmanager
def doubled() -> Iterator[None]:
    """Norms and softmax of transformers compute in float32 by name; here that name is float64's."""
    single, as_float = torch.float32, Tensor.float
    torch.float32, Tensor.float = torch.float64, Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.float32, Tensor.float = single, as_float  # type: ignore[method-assign]


def in_double(family: str) -> LanguageModel:
    lm = build(family)
    lm.model.double()
    lm.model.config._experts_implementation = "eager"  # the others have no float64
    return lm


def random(make: Callable[..., Dictionary], lm: LanguageModel, **options: object) -> Dictionary:
    """A dictionary whose parameters are all random, biases and skip included."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        dictionary = make(lm.info, ReLU, n_features=8, k=4, **options).eval().requires_grad_(False)
        for parameter in dictionary.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return dictionary


class Reference:
    """One held pass whose MLPs' outputs are leaves: gradients there are the effects of writing."""

    def __init__(self, lm: LanguageModel, dictionary: Dictionary, tokens_P: Tensor) -> None:
        self.lm, self.dictionary, L = lm, dictionary, lm.info.n_layers
        sites = [f"mlp_out.{m}" for m in range(L)]
        names = ["resid_pre.0", *dict.fromkeys([*sites, *dictionary.sources])]
        values = capture(lm, tokens_P[None], names)
        x_NSD = torch.stack([values[site][0] for site in dictionary.sources], 1)
        self.code = dictionary.encode(x_NSD).dense().double().view(len(tokens_P), -1, 8)
        self.code[0] = 0
        self.leaves = [values[name].clone().requires_grad_() for name in ["resid_pre.0", *sites]]
        self.out = {site: values[site][0] for site in sites}
        self.clean = {name: values[name] for name in dictionary.sources}
        self.read: dict[str, Tensor] = {}
        frozen = Frozen(lm, norms=True)
        with frozen.attached(), torch.no_grad():
            lm.logits(tokens_P[None])
        frozen.holds = True
        handles: list[RemovableHandle] = []
        hooks: list[tuple[str, Callable[[Tensor], Tensor | None]]] = []

        def hook(name: str, function: Callable[[Tensor], Tensor | None]) -> None:
            hooks.append((name, function))

        def keep(name: str) -> Callable[[Tensor], None]:
            return lambda value: self.read.__setitem__(name, value)

        for name in dictionary.sources:
            hook(name, keep(name))
        hook("resid_pre.0", lambda _: self.leaves[0])
        for m, site in enumerate(sites):
            hook(site, lambda _, m=m, site=site: self.leaves[m + 1] + self.skipped(site, m))
        try:
            with frozen.attached():  # its hooks come first, so an MLP is cut behind its norm
                for name, function in hooks:
                    handles += attach(lm.model, resolve(lm.model, name, lm.info), function)
                self.logits = lm.logits(tokens_P[None])[0]
        finally:
            for handle in handles:
                handle.remove()

    def skipped(self, site: str, m: int) -> Tensor:
        """W_skip of what has changed at the MLP's input: zero, with its gradient."""
        if self.dictionary.W_skip is None or site not in self.dictionary.targets:
            return torch.zeros_like(self.leaves[m + 1])
        t = self.dictionary.targets.index(site)
        name = self.dictionary.sources[t]
        return (self.read[name] - self.clean[name]) @ self.dictionary.W_skip[t].double().T

    def gradients(self, target: Tensor) -> list[Tensor]:
        found = torch.autograd.grad(target, self.leaves, retain_graph=True, allow_unused=True)
        pairs = zip(found, self.leaves, strict=True)
        return [torch.zeros_like(leaf[0]) if g is None else g[0] for g, leaf in pairs]

    def errors(self) -> list[Tensor]:
        """What each MLP wrote less features, bias and skip; nothing at position 0."""
        found = []
        for site, value in self.out.items():
            error = value.clone()
            if site in self.dictionary.targets:
                t = self.dictionary.targets.index(site)
                error -= self.dictionary.decoder.b_dec[t].double()
                if self.dictionary.W_skip is not None:
                    x_PD = self.clean[self.dictionary.sources[t]][0]
                    error -= x_PD @ self.dictionary.W_skip[t].double().T
                for s in self.dictionary.reads(t):
                    W_FD = self.dictionary.decoder.written(t, s, slice(None)).double()
                    error -= self.code[:, s] @ W_FD
            error[0] = 0
            found.append(error)
        return found

    def row(self, graph: Graph, target: Tensor) -> Tensor:
        """The effects of the graph's nodes, in its order, on a scalar: [nodes]."""
        tokens, *mlps = self.gradients(target)
        nodes = graph.nodes
        row = torch.zeros(len(nodes), dtype=torch.float64)
        source_of = {int(site.split(".")[1]): s for s, site in enumerate(self.dictionary.sources)}
        for i in range(nodes.n_features):
            q, f = int(nodes.position[i]), int(nodes.index[i])
            s = source_of[int(nodes.layer[i])]
            for t in self.dictionary.decoder.reaches(s):
                m = int(self.dictionary.targets[t].split(".")[1])
                written_D = self.dictionary.decoder.written(t, s, slice(None))[f].double()
                row[i] += self.code[q, s, f] * written_D @ mlps[m][q]
        errors = torch.stack([(e * g).sum(-1) for e, g in zip(self.errors(), mlps, strict=True)])
        row[nodes.n_features : nodes.first_token] = errors.flatten()
        row[nodes.first_token : nodes.first_target] = (self.embedded() * tokens).sum(-1)
        return row

    def embedded(self) -> Tensor:
        """resid_pre.0 without learned positions, which are constants."""
        x_PD = self.leaves[0][0].detach()
        wpe = getattr(self.lm.trunk, "wpe", None)
        return x_PD if wpe is None else x_PD - wpe.weight[: len(x_PD)]
