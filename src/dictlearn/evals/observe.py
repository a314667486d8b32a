"""One pass over text: the model's activations and every row's reconstruction of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dictlearn.evals.context import DICTIONARY, EvalContext, Observation
from dictlearn.evals.passes import digest
from dictlearn.lm.capture import batch_at
from dictlearn.types import Batch, TextWindows, spread


def window_batches(windows: TextWindows, n_tokens: int, batch_windows: int) -> list[list[int]]:
    """The windows that `spread` chooses, in batches."""
    chosen = spread(windows, n_tokens)
    return [chosen[i : i + batch_windows] for i in range(0, len(chosen), batch_windows)]


def observe(context: EvalContext, windows: TextWindows, n_tokens: int) -> Iterator[Observation]:
    """Observations of `n_tokens` positions, with the reconstructions of all rows known so far."""
    for indices in window_batches(windows, n_tokens, context.batch_windows):
        context.passes.next()
        tokens_BP = windows.window_batch(indices)
        valid_BP = windows.kept(indices)
        yield observe_tokens(context, tokens_BP, valid_BP)


def observe_training(context: EvalContext, n_tokens: int) -> Iterator[Observation]:
    """The same of the training split, or of activations that were trained on."""
    if context.train_rows is not None:
        for batch in context.train_rows.batches(n_tokens):
            yield observe_rows(context, batch)
        return
    assert context.train_windows is not None, "there is no training split"
    yield from observe(context, context.train_windows, n_tokens)


def observe_rows(context: EvalContext, batch: Batch) -> Observation:
    """An observation of activations without a text: every row is a window of one valid token."""
    tokens_BP = batch.tokens_N[:, None]
    text_BP = torch.ones_like(tokens_BP, dtype=torch.bool)
    return _observed(context, tokens_BP, text_BP, text_BP[:, 0], batch)


@torch.no_grad()
def observe_tokens(context: EvalContext, tokens_BP: Tensor, valid_BP: Tensor) -> Observation:
    lm, dictionary = context.lm, context.dictionary
    assert lm is not None, "activations come from a language model"
    tokens_BP, valid_BP = tokens_BP.to(lm.device), valid_BP.to(lm.device)
    text_BP = before_padding(valid_BP)
    sources, targets = dictionary.sources, dictionary.targets
    batch = context.passes.once(
        lambda: ("activations", sources, targets, digest(tokens_BP, text_BP)),
        lambda: batch_at(lm, tokens_BP, text_BP, sources, targets),
    )
    return _observed(context, tokens_BP, text_BP, valid_BP[text_BP], batch)


@torch.no_grad()
def _observed(
    context: EvalContext, tokens_BP: Tensor, text_BP: Tensor, valid_N: Tensor, batch: Batch
) -> Observation:
    dictionary, x_NSD = context.dictionary, batch.x_NSD
    code = dictionary.encode(x_NSD)
    y_hat = {DICTIONARY: dictionary.decode(code, x_NSD)}
    y_hat |= {name: row(x_NSD, batch.y_NTD) for name, row in context.rows.items()}
    return Observation(tokens_BP, text_BP, valid_N, batch, code, y_hat)


def before_padding(valid_BP: Tensor) -> Tensor:
    """bool [B, P]: positions up to each window's last valid token, special ones included."""
    return valid_BP.flip(1).cummax(1).values.flip(1)
