"""Tables, sentence and pictures of dictionaries over several layers, side by side."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from rich.console import Console

from dictlearn.evals import layers
from dictlearn.evals.decoder_norms import DecoderNorms
from dictlearn.evals.evaluation import evaluate_dictionary
from dictlearn.evals.jacobian import JacobianCosine
from dictlearn.evals.reconstruction import Reconstruction
from dictlearn.evals.record import record_of, write_record
from dictlearn.evals.replacement import ReplacementModel
from dictlearn.evals.report import write_report
from dictlearn.evals.report.layer_plots import layer_numbers, layer_plots
from dictlearn.evals.sparsity import Sparsity
from dictlearn.evals.table import cell, rows
from dictlearn.lm.capture import capture

EVALS = {
    "reconstruction": Reconstruction(),
    "sparsity": Sparsity(),
    "decoder_norms": DecoderNorms(),
    "replacement": ReplacementModel(),
    "jacobian": JacobianCosine(tokens=16, probes=2),
}
OTHER = "PLT, equal parameters"


@pytest.fixture
def record(deep_lm, layers_of, windows):
    clt, plt = layers_of(4, "lower"), layers_of(4)
    found = [evaluate_dictionary(d, deep_lm, windows, EVALS) for d in (clt, plt)]
    return record_of(found[0], clt, deep_lm.info, {}, {OTHER: (plt, found[1])})


def test_dictionaries_stand_side_by_side(record):
    (label, own, first), (other, theirs, second) = layers.side_by_side(record)
    assert (label, other, first, second) == ("CLT", OTHER, True, False)
    for cells, figures in ((own, record["figures"]), (theirs, record["beside"][OTHER]["figures"])):
        assert cells[1:] == [cell(column, figures) for column in layers.SIDE_BY_SIDE[1:]]
    # W_enc, b_enc and b_dec of both; 10 blocks of decoder against 4
    assert record["dictionary"]["parameters"] == 4 * 24 * 17 + 4 * 16 + 10 * 24 * 16
    assert own[0] == "5.54k" and theirs[0] == "3.23k"
    assert [label for label, *_ in rows(record)][:2] == ["CLT", OTHER]


def test_every_setting_has_a_line_for_each_dictionary(record):
    found = list(layers.replaced(record))
    assert [label for _, label, *_ in found] == ["CLT", OTHER] * 5
    assert [setting for setting, *_ in found][::2] == list(layers.SETTINGS.values())
    score = record["beside"][OTHER]["figures"]["replacement/all_free/score"]
    assert found[-1][2][-1] == f"{score:.3f}".replace("-", "\N{MINUS SIGN}")


def test_terminal_tables_fit_eighty_columns(record):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(*layers.renderables(record), sep="\n")
        text = console.export_text()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for words in (OTHER, "half, teacher forced", "all, free running", "Jacobian", "score"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 80


def figures_of(score, fvu=0.2, l0=60.0, cosine=0.5, forced=0.9, across=0.0):
    return {
        "replacement/all_free/score": score,
        "replacement/all_forced/score": forced,
        "fvu": fvu,
        "l0": l0,
        "jacobian_cosine": cosine,
        "jacobian_across": across,
    }


def pair(ours, theirs):
    of = {"kind": "clt", "sources": [], "targets": []}
    beside = {OTHER: {"dictionary": {**of, "kind": "plt"}, "figures": theirs}}
    return {"dictionary": of, "figures": ours, "beside": beside}


def test_a_score_below_the_others_is_explained_by_what_is_worse():
    (sentence,) = layers.verdicts(
        pair(figures_of(0.7, fvu=0.25, cosine=0.4, across=0.31), figures_of(0.8))
    )
    assert sentence == (
        "All layers replaced and free running, the score of the CLT is 0.700, below the 0.800 of "
        "PLT, equal parameters: worse are its FVU (0.2500 against 0.2000) and its Jacobian cosine "
        "(0.400 against 0.500; 31% of its squared Jacobian joins different layers)."
    )
    (sentence,) = layers.verdicts(pair(figures_of(0.7, l0=50.0), figures_of(0.8)))
    assert sentence.endswith("worse is its L0 (50.00 against 60.00 active features).")


def test_where_only_free_running_is_worse_errors_compound():
    (sentence,) = layers.verdicts(pair(figures_of(0.7, forced=0.95), figures_of(0.8)))
    assert sentence.endswith(
        "worse is how its errors compound from layer to layer (its score is 0.950 against 0.900 "
        "teacher forced)."
    )


def test_where_nothing_is_worse_the_sentence_admits_it():
    (sentence,) = layers.verdicts(pair(figures_of(0.7, forced=0.8), figures_of(0.8)))
    assert sentence.endswith("none of the figures taken here, which do not say why.")


def test_a_score_at_or_above_the_others_needs_no_excuse():
    assert layers.verdicts(pair(figures_of(0.8, fvu=0.9), figures_of(0.8))) == []
    assert layers.verdicts(pair(figures_of(0.7), {"fvu": 0.2})) == []


def test_the_report_shows_the_layers(tmp_path, record):
    record = copy.deepcopy(record)
    record["figures"]["replacement/all_free/score"] = -9.0
    assert "l0_by_layer" not in {plot.name for plot in layer_plots(record)}  # TopK's is flat
    record["figures"]["l0/mlp_in.0"] = 9.0
    write_record(tmp_path, record)
    html = write_report(tmp_path).read_text()
    for words in ("Side by side", "Replacement model", "By layer", OTHER, "half, free running"):
        assert words in html
    assert all(sentence in html for sentence in layers.verdicts(record))
    pictures = {path.stem for path in (tmp_path / "figures").glob("*.png")}
    assert {"fvu_by_layer", "l0_by_layer", "decoder_norms"} <= pictures
    heat_map = next(svg for svg in re.findall(r"<svg.*?</svg>", html, re.S) if "Heat map" in svg)
    assert heat_map.count("fill: var(--first)") == 10  # the lower triangle of four layers
    assert "source layer" in heat_map and "target layer" in heat_map
    assert not re.search(r"https?:|//[a-z]", html)


def test_one_layer_has_none_of_it(lm, layers_of, windows):
    dictionary = layers_of(1)
    evals = {name: EVALS[name] for name in ("reconstruction", "sparsity", "decoder_norms")}
    found = evaluate_dictionary(dictionary, lm, windows, evals)
    record = record_of(found, dictionary, lm.info, {})
    assert layer_plots(record) == [] and layers.renderables(record) == []


def test_features_share_their_norms_among_targets(deep_lm, layers_of, windows):
    """A crosscoder whose features write to the second site 3.1 times what they write to the first."""
    dictionary = layers_of(2, "shared")
    tokens = windows.window_batch(range(len(windows)))
    acts, valid = capture(deep_lm, tokens, dictionary.targets), windows.kept(range(len(windows)))
    for W_SFD, site, size in zip(
        dictionary.decoder.W_dec, dictionary.targets, (1, 3.1), strict=True
    ):
        deviation = acts[site][valid].var(0, unbiased=False).sum().sqrt()
        W_SFD.copy_(size * deviation * torch.nn.functional.normalize(W_SFD, dim=-1))
    evals = {"norms": DecoderNorms(), "reconstruction": EVALS["reconstruction"]}
    found = evaluate_dictionary(dictionary, deep_lm, windows, evals)
    edges, counts = found.series["relative_norm_histogram"]
    (filled,) = edges[counts > 0].tolist()
    assert 0 < counts.sum() <= 24 and filled == pytest.approx(0.75)
    record = record_of(found, dictionary, deep_lm.info, {})
    assert "decoder_norms" not in record["series"]
    assert "relative_norm" in {plot.name for plot in layer_plots(record)}


def test_more_targets_than_two_are_counted_by_the_strongest(record):
    shares = record["series"]["largest_share_histogram"][1]
    assert len(record["series"]["strongest_target"]) == 4
    assert sum(record["series"]["strongest_target"]) == sum(shares) > 0
    assert {"largest_share", "strongest_target"} <= {plot.name for plot in layer_plots(record)}


def test_decoder_norms_do_not_depend_on_units(deep_lm, layers_of, windows):
    """Features twice as strong that write half as much are the same features."""
    dictionary = layers_of(4, "lower")
    tables = []
    for factor in (1.0, 2.0):
        scaled = copy.deepcopy(dictionary)
        scaled.encoder.W_enc.mul_(factor)
        scaled.encoder.b_enc.mul_(factor)
        for W_SFD in scaled.decoder.W_dec:
            W_SFD.div_(factor)
        found = evaluate_dictionary(scaled, deep_lm, windows, {"norms": DecoderNorms()})
        tables.append(found.series["decoder_norms"])
    torch.testing.assert_close(tables[0], tables[1])
    source = dictionary.decoder.norms_by_target()
    assert ((tables[0] > 0) == (source > 0)).all() and (source > 0).sum() == 10


def test_layers_are_read_off_the_names_or_counted():
    assert layer_numbers(["mlp_in.3", "mlp_in.11"]) == [3, 11]
    assert layer_numbers(["model.layers.3.mlp:input", "model.layers.5.mlp:input"]) == [3, 5]
    assert layer_numbers(["embed", "resid_post.2"]) == [0, 1]
    assert layer_numbers(["resid_mid.2", "resid_post.2"]) == [0, 1]
