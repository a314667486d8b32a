"""The record, the table and the report: whole, self-contained, honest about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from dictlearn.evals.baselines import Baselines
from dictlearn.evals.downstream import Downstream
from dictlearn.evals.evaluation import evaluate_dictionary
from dictlearn.evals.reconstruction import Reconstruction
from dictlearn.evals.record import read_record, record_of, write_record
from dictlearn.evals.report import write_report
from dictlearn.evals.report.descriptions import descriptions
from dictlearn.evals.report.features import features
from dictlearn.evals.report.history import loss_terms, read_history, series
from dictlearn.evals.report.plots import binned, training_plots
from dictlearn.evals.report.settings import summary
from dictlearn.evals.report.theme import inline_svg
from dictlearn.evals.sparsity import Sparsity
from dictlearn.evals.table import COLUMNS, MISSING, cell, facts, renderable

CONFIG = """\
name: toy
seed: 3
steps: 40
batch_tokens: 64
model: {_target_: dictlearn.lm.load.load_model, path: tiny, revision: null}
data: {_target_: dictlearn.sources.tokens.text_windows, paths: '<script>alert(1)</script>'}
sparsity: {_target_: dictlearn.sparsity.topk.TopK, _partial_: true, k: 4}
objective:
  _target_: dictlearn.objectives.objective.Objective
  terms:
    reconstruction: {_target_: dictlearn.objectives.reconstruction.Reconstruction}
    auxk: {_target_: dictlearn.objectives.auxk.AuxK}
"""


def metrics_line(step, **more):
    return json.dumps(
        {"step": step, "tokens": 64 * step, "loss": 9 / step, "loss/reconstruction": 8 / step,
         "loss/auxk": 1 / step, "fvu": 1 / step, "l0": 4.0, "dead": 0.1, "lr": 1e-3,
         "tokens_per_second": 1e4, "grad_norm": 2.0, **more}
    )  # fmt: skip


@pytest.fixture(scope="module")
def record(lm, toy, windows, train_windows):
    evals = {
        "baselines": Baselines(fit_tokens=1000),
        "reconstruction": Reconstruction(),
        "sparsity": Sparsity(),
        "downstream": Downstream(),
    }
    dictionary = toy()
    evaluation = evaluate_dictionary(dictionary, lm, windows, evals, train_windows=train_windows)
    data = {"_target_": "dictlearn.sources.tokens.text_windows", "context": 12}
    paths = {"paths": ["notes & more.txt", "second.txt"]}
    return record_of(evaluation, dictionary, lm.info, data | paths)


@pytest.fixture(scope="module")
def run(tmp_path_factory, record):
    """A run folder with its report written: drawing takes a while, so once for all tests."""
    folder = tmp_path_factory.mktemp("runs") / "toy & <run>"
    write_record(folder, record)
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("\n".join(map(metrics_line, range(1, 40))))
    assert write_report(folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def html(run):
    return (run / "report.html").read_text()


class Page(HTMLParser):
    """Open tags must be closed in order; collects ids, references and text."""

    VOID = {"meta", "br", "use", "path", "rect", "circle", "line"}

    def __init__(self, html):
        super().__init__()
        self.open, self.ids, self.links, self.text = [], [], [], ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found[key] for key in ("href", "src", "xlink:href") if key in found]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_report_asks_the_network_nothing(html):
    assert not re.search(r"https?:|//[a-z]", html)
    assert "<script" not in html and "@import" not in html and "<link" not in html
    page = Page(html)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert set(re.findall(r"url\(#([^)]+)\)", html)) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))


def test_report_shows_every_figure_curve_and_setting(run, html, record):
    text = Page(html).text
    for row in (record["figures"], *record["baselines"].values()):
        for column in COLUMNS:
            assert cell(column, row) in text
    for name, value, meaning in facts(record):
        assert name in text and value in text and meaning in text
    for label in ("toy & <run>", *record["baselines"], "resid_post.0", "tiny", "TopK, k 4"):
        assert label in text
    pictures = {path.stem for path in (run / "figures").glob("*.png")}
    assert pictures == {
        "loss", "fvu", "dead", "lr", "tokens_per_second",
        "density", "error_by_position", "recovered_by_position",
    }  # fmt: skip
    assert html.count("<svg") == html.count('role="img" aria-label=') == len(pictures)


def test_report_names_its_text(html, record, tmp_path):
    tokens = f"{record['text']['tokens']:,}"
    name = "notes &amp; more.txt and 1 more"
    assert f"evaluated on {tokens} held-out tokens of <b>{name}</b>." in html
    assert "paths notes &amp; more.txt, second.txt" in html
    whole = {**record, "text": {**record["text"], "part": "whole", "data": {"held_out": 0.1}}}
    write_record(tmp_path, whole)
    page = write_report(tmp_path).read_text()
    assert (
        f"evaluated on {tokens} tokens of <b>text</b>." in page
        and "fitted on the same text" in page
    )
    assert "held-out" not in page and "held_out" not in page


def test_key_figures_have_the_decimals_of_the_table(html, record):
    figures = record["figures"]
    key = html.partition('<dl class="key">')[2].partition("</dl>")[0]
    for value in (f"{figures['l0']:.2f}", f"{figures['dead']:.2%}", f"{figures['kl']:.4f}"):
        assert (
            f"<dd>{value}</dd>" in key and key.count(value) == 1 and value in html.replace(key, "")
        )


def test_a_description_is_shown_with_its_code(tmp_path):
    example = {"name": "x/1", "address": "#x/1", "reliable": True, "score": 0.9, "density": 0.0123}
    example |= {"description": "<b> or `<i>`", "contexts": []}
    counts = {"described": 1, "unreliable": 0, "undescribed": 0, "dead": 0}
    summary = {"features": 1, "tokens": 9, "documents": 1, "counts": counts, "examples": [example]}
    (tmp_path / "features").mkdir()
    (tmp_path / "features/index.html").touch()
    (tmp_path / "features/summary.json").write_text(json.dumps(summary))
    html = features(tmp_path)
    assert "&lt;b&gt; or <code>&lt;i&gt;</code>" in html and "fires on 1.23% of tokens" in html


def test_plots_take_their_colours_from_the_page(html):
    plots = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    assert set(re.findall(r"var\(--(\w+)\)", plots)) >= {"first", "muted", "rule"}
    assert not re.search(r"(?:fill|stroke): ?#", plots)
    assert "prefers-color-scheme: dark" in html


def test_report_without_a_training_run_shows_what_there_is(tmp_path, record):
    write_record(tmp_path, record)
    text = Page(write_report(tmp_path).read_text()).text
    assert "Training" not in text and "Settings" not in text
    assert "Beside the baselines" in text


def test_report_of_a_partial_evaluation_leaves_out_what_was_not_measured(
    tmp_path, lm, toy, windows
):
    dictionary = toy()
    evaluation = evaluate_dictionary(dictionary, lm, windows, {"sparsity": Sparsity()})
    write_record(tmp_path, record_of(evaluation, dictionary, lm.info, {}))
    text = Page(write_report(tmp_path).read_text()).text
    assert MISSING in text and "Explained variance" not in text and "L0" in text


def test_report_without_figures_says_what_writes_them(tmp_path):
    with pytest.raises(ValueError, match="figures.json: no figures here; dictlearn evaluate"):
        write_report(tmp_path)


DAMAGES = {
    "[1]": "holds no figures",
    '{"figures": []}': "holds no figures",
    "[" * 100_000: r"not a JSON file \(nested too deeply\)",
    '{"figures": ' + "1" * 5000: r"not a JSON file \(",  # more digits than Python reads
    '{"figures": {"fvu": 0.1}, "versions": {}}': "has no dictionary: a report shows",
}


@pytest.mark.parametrize("text", DAMAGES, ids=lambda text: text[:20])
def test_figures_that_are_none_are_one_sentence(tmp_path, text):
    (tmp_path / "figures.json").write_text(text)
    with pytest.raises(ValueError, match=f"figures.json: {DAMAGES[text]}"):
        write_report(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


@pytest.mark.parametrize("wrong", [None, "x", [[]], {"a": "b"}], ids=str)
def test_wrong_types_in_figures_are_one_sentence_or_left_out(tmp_path, record, wrong):
    figures = {"figures": dict.fromkeys(record["figures"], wrong)}
    parts = ("dictionary", "model", "text", "baselines", "series", "versions")
    for change in (figures, *({part: wrong} for part in parts)):
        write_record(tmp_path, {**record, **change})
        try:
            write_report(tmp_path)
        except ValueError as error:
            assert "figures.json: not what dictlearn evaluate writes (" in str(error)
            assert not re.search(
                r"Error|object|type '", str(error)
            )  # Python's words are about code
        (Path(tmp_path) / "figures.json").unlink()


@pytest.mark.parametrize("text", ["a: [", "- 1", "a: &x [1]\nb: [*x, *x]\n", "\xff"], ids=ascii)
def test_a_configuration_that_is_none_is_one_sentence(tmp_path, record, text):
    write_record(tmp_path, record)
    (tmp_path / "config.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.yaml: .*not a run's configuration"):
        write_report(tmp_path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[1]", '{"explained": []}', "null", "{"])
def test_a_damaged_summary_of_descriptions_is_one_sentence(tmp_path, text):
    (tmp_path / "features").mkdir()
    (tmp_path / "features/explanations.json").write_text(text)
    with pytest.raises(ValueError, match="not what `dictlearn explain` writes"):
        descriptions(tmp_path)


def test_record_survives_the_disk_and_is_strict_json(tmp_path, record):
    assert record["baselines"]["zero ablation"]["gamma"] is None  # undefined, and JSON has no NaN
    assert record["text"]["tokens"] == 93 and len(record["text"]["sha256"]) == 64
    assert {"python", "torch", "transformers", "dictlearn"} == record["versions"].keys()
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"]


def test_terminal_table_fits_eighty_columns_and_holds_every_row(record):
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    with console.file:
        console.print(renderable(record))
        text = console.export_text()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    for label in ("toy", *record["baselines"], "FVU", "special", "KL", "dead"):
        assert label in text
    for column in COLUMNS:
        assert cell(column, record["figures"]) in text


def test_history_of_a_killed_and_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [metrics_line(1), metrics_line(3), metrics_line(2), metrics_line(3, fvu=0.5)]
    lines += [metrics_line(4, fvu=float("nan"), note="text"), '{"step": Infinity, "fvu": 1}']
    lines += [
        "\xff",
        '{"step": ' + "1" * 5000 + "}",
        '{"step": 5, "fv',
    ]  # no UTF-8; too many digits
    path.write_text("\n".join(lines), encoding="latin-1")
    history = read_history(path)
    assert [entry["step"] for entry in history] == [1, 2, 3, 4]
    assert series(history, "fvu") == ([64, 128, 192], [1, 0.5, 0.5])
    assert series(history, "absent") == ([], [])
    assert loss_terms(history) == ["reconstruction", "auxk"]
    assert read_history(tmp_path / "none.jsonl") == []


def test_a_curve_of_zeros_has_an_axis_one_can_read(tmp_path):
    (plot,) = training_plots([{"step": 1.0, "dead": 0.0}, {"step": 2.0, "dead": 0.0}])
    svg = inline_svg(plot.draw, plot.name, plot.label, plot.width)
    assert "e-" not in "".join(re.findall(r">([^<]+)</text>", svg))


def test_positions_are_binned_by_their_tokens():
    x, y = binned([9.0, 1.0, 2.0, 4.0, 5.0], [0, 1, 1, 3, 0], n_bins=3)
    assert x == [1, 2.75] and y == [1.0, 3.5]
    assert sum(binned([1.0] * 500, [2] * 500, 48)[1]) == len(binned([1.0] * 500, [2] * 500, 48)[1])


def test_summary_names_what_was_trained():
    found = dict(summary(CONFIG))
    assert found["steps"] == "40 of 64 tokens" and found["seed"] == "3"
    assert found["model"] == "path tiny" and found["sparsity"] == "TopK, k 4"
    assert found["objective"] == "Objective, reconstruction, auxk"
