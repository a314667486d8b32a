"""attribution.json on the report page, and a report written anew."""

from __future__ import annotations

import json

import pytest

from dictlearn.config import compose
from dictlearn.evals.attribution import read_attribution, rows
from dictlearn.evals.record import FORMAT, write_record
from dictlearn.types import ModelInfo
from dictlearn.verbs import report

PROMPT = {"prompt": "def f(<x>):\n    return", "tokens": 7, "active_features": 120}
TRACED = {
    "format": 1,
    "versions": {"circuit-tracer": "0.5.0"},
    "dictionaries": {
        "clt": {"prompts": [{**PROMPT, "replacement": 0.8, "completeness": 0.9}] * 2},
        "plt": {"prompts": [{**PROMPT, "replacement": 0.4, "completeness": None}]},
    },
}


def test_means_come_first_and_a_prompt_stands_once():
    traced = json.loads(json.dumps(TRACED).replace("null", "0.7"))
    found = list(rows(traced))
    assert [row[:2] for row in found] == [
        ("mean of 2", "clt"),
        ("", "plt"),
        ("def f(<x>):↵     return", "clt"),
        ("", "plt"),
        ("def f(<x>):↵     return", "clt"),
    ]
    assert found[0][2] == ["0.800", "0.900", "120", "7"] and found[0][3]


def test_the_page_has_it_where_the_file_is(tmp_path):
    info = ModelInfo("pico", None, "qwen3", 4, 256, 4096, 512)
    record = {
        "format": FORMAT,
        "dictionary": {
            "kind": "clt",
            "sources": ["mlp_in.0"],
            "targets": ["mlp_out.0"],
            "code_sources": 1,
            "n_features": 8,
            "width": 256,
            "parameters": 9,
        },
        "model": vars(info),
        "text": {"tokens": 10, "sha256": "", "data": {}},
        "figures": {},
        "baselines": {},
        "series": {},
        "versions": {},
        "date": "today",
        "seconds": 1.0,
    }
    write_record(tmp_path, record)
    assert report.main(compose("report", [f"run={tmp_path}"])) == 0
    assert "Attribution graphs" not in (tmp_path / "report.html").read_text()
    traced = json.dumps(TRACED).replace("null", "0.7")
    (tmp_path / "attribution.json").write_text(traced)
    assert report.main(compose("report", [f"run={tmp_path}"])) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Attribution graphs" in page and "0.800" in page and "circuit-tracer 0.5.0" in page
    assert "f(&lt;x&gt;)" in page and "f(<x>)" not in page


NO_PROMPTS = '{"format": 1, "dictionaries": {"clt": {"prompts": []}}}'


@pytest.mark.parametrize("content", ['{"format": 2}', "[]", json.dumps(TRACED), NO_PROMPTS])
def test_another_file_is_refused(content, tmp_path):
    (tmp_path / "attribution.json").write_text(content)
    with pytest.raises(ValueError, match="attribution.json"):
        read_attribution(tmp_path)


def test_a_run_without_figures_has_no_report(tmp_path):
    with pytest.raises(ValueError, match="figures"):
        report.main(compose("report", [f"run={tmp_path}"]))
    with pytest.raises(ValueError, match="want run="):
        report.main(compose("report", []))
