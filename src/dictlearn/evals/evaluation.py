"""Runs the evals of the `eval` group over one dictionary: one pass for all that can share it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from dictlearn.evals.context import (
    EvalContext,
    EvalResult,
    Meter,
    Metric,
    RowSource,
)
from dictlearn.evals.observe import observe_rows, observe_tokens, window_batches
from dictlearn.evals.passes import OWN, Passes
from dictlearn.lm.language_model import LanguageModel
from dictlearn.lm.sites import STANDARDISED
from dictlearn.sources.protocol import RowsOf
from dictlearn.types import DictionaryLike, ModelInfo, Progress, TextWindows

Eval = Metric | RowSource | Callable[[EvalContext], EvalResult]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Results of the evals, and the text they were computed on."""

    figures: dict[str, float] = field(default_factory=dict)  # the dictionary's
    rows: dict[str, dict[str, float]] = field(default_factory=dict)  # the baselines'
    series: dict[str, Tensor] = field(default_factory=dict)
    tokens: int = 0  # text positions read, special tokens among them
    tokens_sha256: str = ""  # of the windows' token ids and of what is kept of them
    seconds: float = 0.0


def evaluate_dictionary(
    dictionary: DictionaryLike,
    lm: LanguageModel,
    windows: TextWindows,
    evals: Mapping[str, Eval],
    *,
    train_windows: TextWindows | None = None,
    n_tokens: int = 65_536,
    batch_windows: int = 8,
    seed: int = 0,
    progress: Progress | None = None,
    passes: Passes = OWN,
) -> Evaluation:
    """Every figure of the `evals` for one dictionary (raw units, inference form) on `windows`.

    Baselines are fitted on `train_windows`. Raises ValueError when the dictionary does not
    fit the model or the text holds nothing to evaluate.
    """
    check_fits(dictionary, lm.info)
    context = EvalContext(
        dictionary, lm, windows, train_windows, n_tokens, batch_windows, seed, {}, passes
    )
    return run_evals(context, evals, progress)


def needs_model(entry: Eval) -> bool:
    """Whether an entry of the `eval` group needs a model and a text; a function does by default."""
    return getattr(entry, "needs_model", True)


def evaluate_rows(
    dictionary: DictionaryLike,
    held_out: RowsOf,
    trained: RowsOf,
    evals: Mapping[str, Eval],
    *,
    n_rows: int = 65_536,
    progress: Progress | None = None,
) -> Evaluation:
    """The same for `evals` that need no model, on activations without one; baselines fit `trained`.

    Nothing is said of positions and special tokens, which are unknown.
    """
    context = EvalContext(dictionary, n_tokens=n_rows, held_out_rows=held_out, train_rows=trained)
    found = run_evals(context, evals, progress)
    for figures in (found.figures, *found.rows.values()):
        figures.pop("fvu_with_special", None)
    series = {name: s for name, s in found.series.items() if not name.endswith("_by_position")}
    return replace(found, series=series)


def check_fits(dictionary: DictionaryLike, info: ModelInfo) -> None:
    """ValueError, in one sentence, when the model's activations have another width.

    A module's input or output may have any: of these the first forward pass tells.
    """
    sites = (*dictionary.sources, *dictionary.targets)
    named = [site for site in sites if ":" not in site.removesuffix(STANDARDISED)]
    if named and dictionary.width != info.width:
        raise ValueError(
            f"dictionary: it reads activations of width {dictionary.width}, but those of "
            f"{info.name} have width {info.width}; model= names the model it was trained on"
        )


def run_evals(
    context: EvalContext, evals: Mapping[str, Eval], progress: Progress | None = None
) -> Evaluation:
    """Fits baselines, then makes the shared pass, then lets the other evals make their own."""
    started = time.perf_counter()
    sources = [entry for entry in evals.values() if isinstance(entry, RowSource)]
    metrics = [entry for entry in evals.values() if isinstance(entry, Metric)]
    others = [entry for entry in evals.values() if not isinstance(entry, RowSource | Metric)]
    for source in sources:
        context = replace(context, rows=context.rows | source.fit(context))
    results, tokens, digest = [], 0, ""
    if metrics:
        results, tokens, digest = _shared_pass(context, metrics, progress)
    results += [other(context) for other in others]
    merged = _merged(results)
    return replace(
        merged, tokens=tokens, tokens_sha256=digest, seconds=time.perf_counter() - started
    )


def _shared_pass(
    context: EvalContext, metrics: list[Metric], progress: Progress | None
) -> tuple[list[EvalResult], int, str]:
    meters = [metric.begin(context) for metric in metrics]
    if context.held_out_rows is not None:
        tokens, digest = _rows_pass(context, context.held_out_rows, meters, progress)
        return [meter.result() for meter in meters], tokens, digest
    assert context.windows is not None and context.lm is not None, (
        "metrics are taken on held-out text"
    )
    batches = window_batches(context.windows, context.n_tokens, context.batch_windows)
    digest, tokens, valid = hashlib.sha256(), 0, 0
    for done, indices in enumerate(batches, start=1):
        context.passes.next()
        tokens_BP, kept_BP = context.windows.window_batch(indices), context.windows.kept(indices)
        digest.update(context.lm.seen_bytes(tokens_BP, kept_BP))
        seen = observe_tokens(context, tokens_BP, kept_BP)
        for meter in meters:
            meter.update(seen)
        tokens += len(seen.valid_N)
        valid += int(seen.valid_N.sum())
        if progress is not None:
            progress(tokens, tokens * len(batches) // done)
    if valid == 0:
        raise ValueError(
            "data: the held-out split has no tokens to evaluate on; give more text or raise "
            "data.held_out"
        )
    return [meter.result() for meter in meters], tokens, digest.hexdigest()


def _rows_pass(
    context: EvalContext, rows: RowsOf, meters: list[Meter], progress: Progress | None
) -> tuple[int, str]:
    """The pass over held-out rows; their number and a hash of them."""
    digest, done, total = hashlib.sha256(), 0, min(context.n_tokens, len(rows))
    for batch in rows.batches(context.n_tokens):
        digest.update(batch.x_NSD.cpu().numpy().tobytes())
        seen = observe_rows(context, batch)
        for meter in meters:
            meter.update(seen)
        done += len(batch.x_NSD)
        if progress is not None:
            progress(done, total)
    return done, digest.hexdigest()


def _merged(results: list[EvalResult]) -> Evaluation:
    merged = Evaluation()
    for result in results:
        assert not merged.figures.keys() & result.figures.keys(), "two evals share a figure's name"
        merged.figures.update(result.figures)
        merged.series.update(result.series)
        for row, figures in result.rows.items():
            merged.rows.setdefault(row, {}).update(figures)
    return merged
