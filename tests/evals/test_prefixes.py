"""A nested dictionary's rows are those of the smaller dictionaries that one could cut from it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from rich.console import Console

from dictlearn.dicts.dictionary import Dictionary
from dictlearn.dicts.shape import Shape
from dictlearn.evals.downstream import Downstream
from dictlearn.evals.evaluation import evaluate_dictionary
from dictlearn.evals.prefixes import Prefixes, nested
from dictlearn.evals.reconstruction import Reconstruction
from dictlearn.evals.record import record_of, write_record
from dictlearn.evals.report import write_report
from dictlearn.evals.sparsity import Sparsity
from dictlearn.evals.table import PREFIXES, cell, renderable
from dictlearn.sparsity.topk import TopK

EVALS = {
    "prefixes": Prefixes(),
    "reconstruction": Reconstruction(),
    "sparsity": Sparsity(),
    "downstream": Downstream(),
}


def matryoshka(prefixes: tuple[int, ...] = (6, 12, 24)) -> Dictionary:
    torch.manual_seed(0)
    site = ("resid_post.0",)
    return Dictionary(
        Shape("sae", site, site, 16, 24, 4, prefixes=prefixes), partial(TopK, k=4)
    ).eval()


@pytest.fixture(scope="module")
def record(lm, windows):
    dictionary = matryoshka()
    return record_of(evaluate_dictionary(dictionary, lm, windows, EVALS), dictionary, lm.info, {})


def test_each_prefix_has_the_figures_of_the_features_cut_off(lm, windows, record):
    whole = matryoshka()
    found = record["prefixes"]
    assert {label: entry["features"] for label, entry in found.items()} == nested(whole)
    assert list(found) == ["first 6 features", "first 12 features"]
    cut = matryoshka()
    with torch.no_grad():
        cut.decoder.W_dec[:, 12:] = 0
    alone = evaluate_dictionary(cut, lm, windows, EVALS).figures
    for key in ("fvu", "ce_increase", "kl", "top1_agreement"):
        assert found["first 12 features"]["figures"][key] == pytest.approx(alone[key], rel=1e-5)
    l0s = [entry["figures"]["l0"] for entry in found.values()]
    assert 0 < l0s[0] < l0s[1] < record["figures"]["l0"] == 4
    assert record["baselines"] == {}


def test_the_report_and_the_terminal_have_a_row_for_each(tmp_path, record):
    write_record(tmp_path, record)
    html = write_report(tmp_path).read_text()
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(renderable(record))
        printed = console.export_text()
    assert "Nested dictionaries" in html and max(map(len, printed.splitlines())) <= 80
    for label, entry in record["prefixes"].items():
        for text in (label, *(cell(column, entry["figures"]) for column in PREFIXES)):
            assert text in html and text in printed
    assert "all 24 features" in html and "all 24 features" in printed


def test_others_have_no_such_rows(lm, toy, windows):
    for dictionary in (toy(), matryoshka(())):
        found = evaluate_dictionary(dictionary, lm, windows, EVALS)
        assert found.rows == {} and record_of(found, dictionary, lm.info, {})["prefixes"] == {}
