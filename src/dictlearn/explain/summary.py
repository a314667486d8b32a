"""Writes features/explanations.json: the number of features described, their scores, and baselines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dictlearn.disk.whole import write_json
from dictlearn.explain.protocol import Explained, Feature, Material
from dictlearn.explain.sample import Sample
from dictlearn.explain.scores import distribution, share

FILE = "explanations.json"
BARS = (0.7, 0.8, 0.9)
PRECISIONS = (0.25, 0.5)


def summarised(
    explainer: str,
    material: Material,
    n_features: int,
    live: Sequence[Feature],
    explained: Explained,
) -> dict[str, Any]:
    """The summary as plain JSON.

    Shares are of `live`, the requested features that fire in the sample. A feature that fires too
    rarely to be scored counts as not described.
    """
    ours = explained.explanations
    scores = {name: _column(ours, name) for name in sorted({n for e in ours for n in e.scores})}
    accuracy = [e.scores.get("balanced_accuracy", 0.0) for e in ours]
    precision = [e.scores.get("precision", 0.0) for e in ours]
    described = {f"{bar:g}": round(share(accuracy, bar, len(live)), 4) for bar in BARS}
    precise = {
        f"{least:g}": round(
            share(
                [a if p >= least else 0.0 for a, p in zip(accuracy, precision, strict=True)],
                material.threshold,
                len(live),
            ),
            4,
        )
        for least in PRECISIONS
    }
    sample = material.sample
    return {
        "format": 1,
        "explainer": explainer,
        "features": n_features,
        "live": len(live),
        "explained": len(ours),
        "left_out": len(live) - len(ours),
        "left_out_because": f"fewer than {material.at_least} firings in one of the halves",
        "tokens": {
            "explain": int((~sample.to_score_N).sum()),
            "score": int(sample.to_score_N.sum()),
        },
        "documents": _documents(sample),
        "reliable": sum(e.reliable for e in ours),
        "reliable_means": f"balanced accuracy >= {material.threshold:g} and precision >= "
        f"{material.precision:g} on text that the explainer never saw",
        "described_at_balanced_accuracy": described,
        f"described_at_{material.threshold:g}_and_precision": precise,
        "scores": {name: _rounded(distribution(values)) for name, values in scores.items()},
        "baselines": {
            name: {"n": len(values), **_rounded(distribution(values))}
            for name, values in explained.baselines.items()
        },
        **explained.figures,
    }


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes the summary whole or not at all; returns its path."""
    write_json(folder / FILE, summary)
    return folder / FILE


def _documents(sample: Sample) -> dict[str, int]:
    """The number of documents, or windows, in each half."""
    scored = dict(zip(sample.units_N.tolist(), sample.to_score_N.tolist(), strict=True))
    return dict(Counter("score" if to_score else "explain" for to_score in scored.values()))


def _column(explanations: Sequence[Any], name: str) -> list[float]:
    return [e.scores[name] for e in explanations if name in e.scores]


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}
