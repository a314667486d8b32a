"""A folder for the hub: our own form, others beside it, a card that says how to load each; the upload."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

import dictlearn
from dictlearn.export import hub as hub_module
from dictlearn.export.hub import Hub, upload
from dictlearn.store.explanations import Explanation, ExplanationWriter, read_explanations
from tests.export.test_layer_formats import INFO, activations, job_of, made


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """The hub's own cache, empty; it is all that can be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def as_downloaded(folder: Path, cache: Path, repo: str) -> None:
    """Puts a folder where the hub's client keeps what it has downloaded of a repository."""
    place = cache / f"models--{repo.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("c0ffee")
    (place / "snapshots").mkdir()
    folder.rename(place / "snapshots" / "c0ffee")


def written(folder: Path, **options) -> Path:
    folder.mkdir()
    Hub(**options).write(job_of(made("topk", "sae")), folder)
    return folder


def test_what_was_written_loads_by_its_hub_id_and_each_format_by_its_folder(tmp_path, hub):
    formats = ["saelens", "sparsify", "dictionary_learning"]
    as_downloaded(written(tmp_path / "new", formats=formats), hub, "me/mine")
    ours, x_NSD = made("topk", "sae"), activations(50).float()
    assert torch.equal(dictlearn.load("me/mine")(x_NSD), ours(x_NSD))
    for name in formats:
        theirs = dictlearn.load(f"me/mine/{name}")
        assert theirs.provenance["format"] == name
        torch.testing.assert_close(theirs(x_NSD), ours(x_NSD))


def test_what_the_hub_does_not_have_is_said(hub):
    with pytest.raises(ValueError, match="the hub cannot be reached and no local copy"):
        dictlearn.load("me/missing/saelens")


def test_the_card_has_front_matter_figures_and_code(tmp_path):
    folder = written(tmp_path / "new", formats=["saelens"], license="mit", push="me/mine")
    text = (folder / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "mit",
        "library_name": "dictlearn",
        "base_model": "org/model",
        "tags": ["interpretability", "sparse-dictionary", "sae", "topk"],
    }
    assert "| L0, active features per token | 4.25 |" in body
    assert 'dictlearn.load("me/mine")' in body
    assert 'SAE.from_pretrained("me/mine", "saelens")' in body
    assert "trained on | 1,000 tokens" in body


def test_nothing_that_a_file_says_becomes_markdown(tmp_path):
    odd = "x |\n\n# Install\n`pip install evil` <img src=x> [click](https://evil.example) \x1b[31m"
    job = job_of(made("topk", "sae"))
    data = {"_target_": f"a.{odd}", "path": odd, "context": odd}
    job = replace(job, training={"init": odd, "tokens": odd, "data": data})
    job = replace(job, info=replace(job.info, name=odd, revision=odd))
    (tmp_path / "new").mkdir()
    Hub().write(job, tmp_path / "new")
    body = (tmp_path / "new/README.md").read_text().split("---\n", 2)[2]
    assert "evil.example" in body and "\x1b" not in body
    assert "\n# Install" not in body
    for order in ("<img", "[click]", "`pip"):
        assert f"\n{order}" not in body and body.count(order) == body.count("\\" + order), order
    rows = [row for row in body.splitlines() if row.startswith("|")]
    assert all(row.replace("\\|", "").count("|") == 3 for row in rows[:10])


def test_a_card_without_figures_or_licence_says_so(tmp_path):
    text = (written(tmp_path / "new") / "README.md").read_text()
    assert "license:" not in text and "owner/name" in text
    bare = made("relu", "transcoder")
    job = job_of(bare)
    (tmp_path / "bare").mkdir()
    Hub().write(type(job)(bare, {}, INFO, None, job.samples), tmp_path / "bare")
    assert "No evaluation was saved" in (tmp_path / "bare" / "README.md").read_text()


def test_descriptions_come_along(tmp_path):
    run, folder, job = tmp_path / "run", tmp_path / "new", job_of(made("topk", "sae"))
    for path in (run / "features", folder):
        path.mkdir(parents=True)
    ExplanationWriter(run / "features").add([Explanation(0, 3, "digits", "lexical")])
    ExplanationWriter(run / "features", "0" * 64).add([Explanation(0, 4, "old", "lexical")])
    Hub().write(replace(job, run=run), folder)
    said = read_explanations(folder / "features")
    assert [(feature, one.text) for feature, one in said.items()] == [((0, 3), "digits")]
    assert "If `reliable` is false" in (folder / "README.md").read_text()


def test_a_conversion_is_named_on_the_card(tmp_path):
    one = made("topk", "transcoder")
    folder = tmp_path / "new"
    folder.mkdir()
    Hub(formats=["saelens"]).write(job_of(one), folder)
    assert "topk features are written as JumpReLU here" in (folder / "README.md").read_text()
    assert dictlearn.load(folder).sparsity.name == "topk"
    assert dictlearn.load(folder / "saelens").sparsity.name == "jumprelu"


def test_what_a_format_beside_it_cannot_hold_is_refused():
    refusal = Hub(formats=["sparsify"]).refusal(made("relu", "sae"), INFO)
    assert refusal is not None and refusal.startswith("sparsify is among formats, and every token")
    assert Hub().refusal(made("relu", "sae"), INFO) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ["onnx"]}, r"format.formats=\['onnx'\]: want some of circuit_tracer"),
        ({"formats": ["hub"]}, "want some of"),
        ({"push": "mine"}, "format.push=mine: want owner/name"),
        ({"push": "me/mine/too"}, "want owner/name"),
        ({"push": "me/mi ne"}, "want owner/name"),
    ],
    ids=str,
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Hub(**options)


def test_an_upload_that_cannot_work_is_refused_before_any_work(monkeypatch):
    one, exporter = made("topk", "sae"), Hub(push="me/mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in str(exporter.refusal(one, INFO))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "get_token", lambda: None)
    assert "needs a token; log in" in str(exporter.refusal(one, INFO))
    monkeypatch.setattr(hub_module, "get_token", lambda: "hf_not_a_token")
    assert exporter.refusal(one, INFO) is None


def test_the_folder_is_what_is_uploaded(tmp_path, monkeypatch):
    calls = []

    def create_repo(self, repo_id, **options):
        calls.append(("create", repo_id, options))
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, **options):
        calls.append(("upload", options.pop("repo_id"), options))

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)
    folder = written(tmp_path / "new", push="me/mine")
    said = Hub(push="me/mine", private=False).finish(folder)
    assert said == "uploaded to https://huggingface.co/me/mine"
    assert Hub().finish(folder) is None
    create, sent = calls
    assert create == ("create", "me/mine", {"private": False, "exist_ok": True})
    assert sent[:2] == ("upload", "me/mine") and sent[2]["folder_path"] == folder
    assert sent[2]["ignore_patterns"] == ["manifest.json"]


def test_a_hub_that_says_no_is_quoted_and_the_folder_named(tmp_path, monkeypatch):
    def create_repo(self, repo_id, **options):
        raise HTTPError("403 Forbidden: you may not\nmore")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    with pytest.raises(ValueError) as refused:
        upload(tmp_path, "me/mine", private=True)
    assert str(refused.value) == (
        f"format.push=me/mine: the folder is in {tmp_path}, but the hub did not take it: "
        "403 Forbidden: you may not"
    )


def test_out_of_reach_is_one_sentence_too(tmp_path, monkeypatch):
    """The client's own doing, with no network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="format.push=me/mine: the folder is in") as refused:
        upload(tmp_path, "me/mine", private=True)
    assert "\n" not in str(refused.value)


def test_our_description_is_the_runs_own(tmp_path):
    folder = written(tmp_path / "new")
    described = json.loads((folder / "dictionary.json").read_text())
    assert described["training"]["tokens"] == 1000
