"""One cell of a concept study: one method at one strength, with one seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dictlearn.interventions import run as passes
from dictlearn.interventions.concept.methods import Change, Methods
from dictlearn.interventions.concept.outputs import repetition
from dictlearn.interventions.concept.texts import Has, Texts
from dictlearn.interventions.steering import decoded

LOGITS = 1 << 25  # in memory


@torch.no_grad()
def cell(
    methods: Methods,
    texts: Texts,
    has: Has,
    whole: Callable[[str], Any] | None,
    method: str,
    strength: float | None,
    seed: int,
) -> dict[str, Any]:
    """The figures of a cell, as plain JSON: the rate of the concept, and what the change costs."""
    study, lm = methods.study, methods.lm
    change = methods.change(method, strength, seed)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(texts.prompts), generator=generator)[: study.n_prompts]
    prompts = [texts.prompts[i] for i in order.tolist()]
    rows = passes.generate(
        lm,
        [_in_front(prompt.ids, change.prefix, methods) for prompt in prompts],
        [methods.dictionary],
        change.edits,
        max_tokens=study.tokens,
        temperature=study.temperature,
        seed=seed,
    )
    written = decoded(lm, rows)
    drawn = torch.randperm(len(texts.unrelated_WP), generator=generator)[: study.kl_windows]
    kl, ce_increase = costs(methods, texts.unrelated_WP[drawn], change)
    n = len(written)
    return {
        "method": method,
        "strength": strength,
        "seed": seed,
        "n": n,
        "rate": sum(map(has, written)) / n,
        "whole": None
        if whole is None
        else sum(bool(whole(p.tail + text)) for p, text in zip(prompts, written, strict=True)) / n,
        "repetition": sum(map(repetition, rows)) / n,
        "kl": kl,
        "ce_increase": ce_increase,
        "sample": written[0],
    }


def costs(methods: Methods, tokens_WP: Tensor, change: Change) -> tuple[float, float]:
    """(KL(model ‖ changed model), increase of cross-entropy) in nats per token of unrelated text."""
    lm = methods.lm
    if not change.edits and not change.prefix:
        return 0.0, 0.0
    at_once = max(1, LOGITS // (tokens_WP.shape[1] * lm.info.vocab_size))
    kl, increase, count = 0.0, 0.0, 0
    for part_WP in tokens_WP.split(at_once):
        part_WP = part_WP.to(lm.device)
        before_WPV = lm.logits(part_WP).float().log_softmax(-1)
        rows = [_in_front(row, change.prefix, methods) for row in part_WP.tolist()]
        changed_WP = torch.tensor(rows, device=lm.device)
        after_WPV = passes.run(lm, changed_WP, [methods.dictionary], change.edits).logits.float()
        if (
            change.prefix
        ):  # the positions of the text itself; its first token is the document's start
            after_WPV = torch.cat([after_WPV[:, :1], after_WPV[:, 1 + len(change.prefix) :]], 1)
        after_WPV = after_WPV.log_softmax(-1)
        before, after = before_WPV[:, 1:-1].flatten(0, 1), after_WPV[:, 1:-1].flatten(0, 1)
        target = part_WP[:, 2:].flatten()
        kl += float((before.exp() * (before - after)).sum())
        increase += float(
            cross_entropy(after, target, reduction="sum")
            - cross_entropy(before, target, reduction="sum")
        )
        count += len(target)
    return kl / count, increase / count


def _in_front(ids: list[int], prefix: list[int], methods: Methods) -> list[int]:
    """The ids with a prefix behind the token that starts a document, if there is one."""
    first = 1 if ids[0] in methods.lm.special_ids else 0
    return [*ids[:first], *prefix, *ids[first:]]
