"""A report shows no features of another dictionary than the run's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dictlearn.evals.report.descriptions import descriptions
from dictlearn.evals.report.features import features

COUNTS = {"described": 1, "unreliable": 0, "undescribed": 1, "dead": 0}
FOUND = {"features": 2, "tokens": 30, "documents": 1, "counts": COUNTS, "examples": []}
SAID = {
    "explained": 2,
    "scores": {},
    "baselines": {},
    "described_at_balanced_accuracy": {"0.7": 0.5},
    "explainer": "lexical",
    "live": 2,
    "reliable": 1,
    "reliable_means": "good",
    "left_out": 0,
    "left_out_because": "none",
}


@pytest.mark.parametrize(
    ("section", "name", "summary"),
    [(features, "summary.json", FOUND), (descriptions, "explanations.json", SAID)],
    ids=["features", "descriptions"],
)
def test_a_section_on_another_dictionary_says_so(tmp_path: Path, section, name, summary):
    (tmp_path / "features").mkdir()
    (tmp_path / "features/index.html").touch()

    def of(dictionary: str | None) -> str:
        text = json.dumps(summary | ({} if dictionary is None else {"dictionary": dictionary}))
        (tmp_path / "features" / name).write_text(text)
        return section(tmp_path)

    whole = of(None)
    assert of("old") == whole  # the run has no dictionary to compare with
    (tmp_path / "dictionary.json").write_text(json.dumps({"format": 2, "sha256": "new"}))
    assert of(None) == of("new") == whole
    assert "of another dictionary" in of("old") and "makes them anew" in of("old")
    (tmp_path / "dictionary.json").write_text("{")
    assert of("old") == whole
