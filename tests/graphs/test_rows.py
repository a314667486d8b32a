"""Rows of a graph equal autograd's through the real modules, in float64, in every decoder family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dictlearn.attribution import attribute as attribution
from dictlearn.attribution import sweep
from dictlearn.attribution.attribute import Settings, attribute
from dictlearn.dicts.clt import clt
from dictlearn.dicts.plt import plt
from dictlearn.dicts.transcoder import transcoder
from dictlearn.lm.linear import Block, linearise
from tests.families import DECODERS, VOCAB, build
from tests.graphs.reference import Reference, doubled, in_double, random

REFUSED = ("qwen3_5_text", "gptj")
TAKEN = [family for family in DECODERS if family not in REFUSED]
PROMISED = TAKEN[: TAKEN.index("phi3") + 1]
KINDS = {
    "plt with skip": (plt, {"skip": True}),
    "clt": (clt, {}),
    "clt, tied and windowed": (clt, {"window": 2, "tied": True, "skip": True}),
    "one layer": (transcoder, {"layer": 1}),
    "some layers": (plt, {"layers": [0, 2]}),
}
TOKENS = torch.randint(4, VOCAB, (5,), generator=torch.Generator().manual_seed(1))
BAR = 1e-9


def worst(family: str, kind: str, **settings: int) -> float:
    """The largest difference of an edge, of the largest edge; every row is compared."""
    make, options = KINDS[kind]
    lm = in_double(family)
    dictionary = random(make, lm, **options)
    with doubled():
        graph = attribute(lm, [dictionary], TOKENS, None, Settings(logits=2, **settings))
        reference = Reference(lm, dictionary, TOKENS)
        wanted = torch.zeros_like(graph.edges.dense())
        nodes = graph.nodes
        for i in range(nodes.n_features):
            site = next(s for s in dictionary.sources if s.endswith(f".{int(nodes.layer[i])}"))
            x_D = reference.read[site][0, int(nodes.position[i])]
            e_D = dictionary.encoder.W_enc[dictionary.sources.index(site), int(nodes.index[i])]
            wanted[i] = reference.row(graph, x_D @ e_D.double())
        logits_V = uncapped(lm, reference.logits[-1])
        for i, target in enumerate(nodes.targets):
            logit = logits_V[target.token] - logits_V.mean()
            wanted[nodes.first_target + i] = reference.row(graph, logit)
    assert nodes.n_features > 10 and int((wanted != 0).sum()) > 100
    return float((graph.edges.dense() - wanted).abs().max() / wanted.abs().max())


def uncapped(lm, logits):
    cap = lm.model.config.to_dict().get("final_logit_softcapping")
    return logits if not cap else cap * torch.atanh(logits / cap)


@pytest.mark.parametrize("kind", ["plt with skip", "clt"])
@pytest.mark.parametrize("family", PROMISED)
def test_rows_are_autograds(family, kind):
    assert worst(family, kind) <= BAR


@pytest.mark.parametrize("family", ["qwen3", "gpt_neox"])
@pytest.mark.parametrize("kind", [*KINDS][2:])
def test_rows_of_other_kinds_are_autograds(family, kind):
    assert worst(family, kind) <= BAR


@pytest.mark.parametrize("kind", ["plt with skip", "clt"])
@pytest.mark.parametrize("family", ["gemma2", "gpt_neox"])
def test_rows_do_not_depend_on_how_they_are_packed(family, kind, monkeypatch):
    """One row a chunk, and no embeddings carried up."""
    monkeypatch.setattr(sweep, "PACKED", dict.fromkeys(sweep.PACKED, 1))
    monkeypatch.setattr(sweep, "worth_carrying", lambda model, rows: False)
    assert worst(family, kind, nodes=12, rank_every=5) <= BAR


@pytest.mark.parametrize("family", TAKEN)
@pytest.mark.parametrize("kind", ["plt with skip", "clt"])
def test_rows_sum_to_what_the_model_computed(family, kind):
    """In float32, with all that has no node: biases, learned positions, and position 0."""
    make, options = KINDS[kind]
    lm = build(family)
    graph = attribute(lm, [random(make, lm, **options)], TOKENS)
    assert 0 < graph.conservation <= 1e-5


def _without_gain(block: Block) -> Block:
    assert block.norm is not None
    return replace(block, norm=replace(block.norm, gain=torch.ones_like(block.norm.gain)))


def _without_scale(block: Block) -> Block:
    assert block.norm is not None
    return replace(block, norm=replace(block.norm, inverse=torch.ones_like(block.norm.inverse)))


def _with_pattern(change: Callable[[Tensor], Tensor]) -> Callable[[Block], Block]:
    def changed(block: Block) -> Block:
        pattern = change(block.attention.pattern)
        return replace(block, attention=replace(block.attention, pattern=pattern))

    return changed


DAMAGE = {
    "a gain": _without_gain,
    "a scale": _without_scale,
    "a head": _with_pattern(lambda pattern: torch.cat([0 * pattern[:1], pattern[1:]])),
    "scales of the norms around attention": _with_pattern(lambda p: p / p.sum(1, keepdim=True)),
    "heads that change places": _with_pattern(lambda pattern: pattern.roll(1, 0)),
    "W_v": lambda block: replace(
        block, attention=replace(block.attention, W_v=block.attention.W_v * 1.01)
    ),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("family", ["qwen3", "gemma2"])
def test_what_is_dropped_is_noticed(family, what, monkeypatch):
    """Both the comparison with autograd and conservation fail."""

    def damaged(*args, **kwargs):
        model = linearise(*args, **kwargs)
        model.blocks[1] = DAMAGE[what](model.blocks[1])
        return model

    monkeypatch.setattr(attribution, "linearise", damaged)
    lm = build(family)
    assert attribute(lm, [random(clt, lm)], TOKENS).conservation > 1e-4
    assert worst(family, "clt") > 1e-4


@pytest.mark.parametrize("family", REFUSED)
def test_a_model_that_is_not_linear_is_refused_by_name(family):
    lm = in_double(family)
    with pytest.raises(ValueError, match=f"{family}.*no attention pattern"):
        attribute(lm, [random(plt, lm)], TOKENS)
