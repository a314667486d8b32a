"""Dictionaries by their hub id: what is fetched of a repository, and what is said where it can't be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import dictlearn
from dictlearn.ckpt.dictionary import save_dictionary
from dictlearn.export.circuit_tracer import CircuitTracer
from tests.ckpt.foreign import released
from tests.ckpt.foreign.test_layer_formats import LENS, lens
from tests.export.test_circuit_tracer import built, job
from tests.export.test_layer_formats import made
from tests.pretend_hub import Hub, empty_cache, served


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture
def hub(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub({"README.md": b"words", "pytorch_model.bin": b"\x80\x04"})
    with served(hub, monkeypatch):
        yield hub


def put(hub: Hub, folder: Path, place: str = "") -> None:
    """What lies in a folder, into the repository."""
    for file in folder.rglob("*"):
        if file.is_file():
            hub.files[place + file.relative_to(folder).as_posix()] = file.read_bytes()


def kept(cache: Path) -> set[str]:
    return {"/".join(path.parts[-2:]) for path in cache.rglob("snapshots/**/*") if path.is_file()}


def layers(folder: Path, n: int) -> Path:
    """SAELens' SAEs of n layers, a folder each."""
    folder.mkdir()
    for layer in range(n):
        about = LENS["metadata"] | {"hook_name": f"blocks.{layer}.hook_resid_pre"}
        lens(folder / f"layer_{layer}", metadata=about)
    return folder


@pytest.mark.parametrize("place", ["", "dictionary/", "sets/one/"])
def test_our_own_form_is_found_and_nothing_else_is_fetched(hub, cache, tmp_path, place):
    dictionary = made("topk", "sae")
    save_dictionary(dictionary, tmp_path / "d", {"model": "org/model"})
    put(hub, tmp_path / "d", place)
    loaded = dictlearn.load(f"owner/tiny/{place}".rstrip("/") if "sets" in place else "owner/tiny")
    assert torch.equal(loaded.encoder.W_enc, dictionary.encoder.W_enc)
    names = {name.rpartition("/")[2] for name in kept(cache)}
    assert names == {"dictionary.json", "dictionary.safetensors"}


@pytest.mark.parametrize("place", ["", "sets/one/"])
def test_another_tools_form_is_found_wherever_it_lies(hub, cache, tmp_path, place):
    put(hub, lens(tmp_path / "one"), place)
    loaded = dictlearn.load(f"owner/tiny/{place}".rstrip("/"))
    assert loaded.sources == ("resid_pre.2",)
    assert {name.rpartition("/")[2] for name in kept(cache)} == {
        "cfg.json",
        "sae_weights.safetensors",
    }


def test_layers_in_folders_of_one_size_are_one_dictionary(hub, tmp_path):
    put(hub, layers(tmp_path / "all", 3))
    assert dictlearn.load("owner/tiny").sources == ("resid_pre.0", "resid_pre.1", "resid_pre.2")
    assert dictlearn.load("owner/tiny/layer_1").sources == ("resid_pre.1",)


def test_a_file_that_is_a_dictionary_is_fetched_alone(hub, cache, tmp_path):
    put(hub, released.esmc(tmp_path, layers=(30, 60)))
    assert dictlearn.load("owner/tiny/layer_60.safetensors").sources == (
        "resid_pre.60:standardised",
    )
    assert {name.rpartition("/")[2] for name in kept(cache)} == {
        "config.json",
        "layer_60.safetensors",
    }
    with pytest.raises(ValueError, match="holds no dictionary here"):
        dictlearn.load("owner/tiny/README.md")
    with pytest.raises(
        ValueError, match=r"holds 2 dictionaries, a file each; ask for one, such as"
    ):
        dictlearn.load("owner/tiny")
    del hub.files["layer_30.safetensors"]
    assert dictlearn.load("owner/tiny").sources == ("resid_pre.60:standardised",)


def test_a_folder_in_a_folder_is_found_by_its_name(hub, cache, tmp_path):
    folder = released.llama_scope(tmp_path)
    put(hub, tmp_path)
    assert dictlearn.load(f"owner/tiny/{folder.name}").provenance["format"] == "llama_scope"
    with pytest.raises(ValueError, match="there are some in Llama3_1-8B-Base-L15TC-8x: ask for"):
        dictlearn.load("owner/tiny")


def test_folders_of_several_sizes_are_listed_and_not_fetched(hub, cache, tmp_path):
    put(hub, layers(tmp_path / "all", 2), "layers/")
    hub.files["layers/layer_1/sae_weights.safetensors"] += b"more"
    with pytest.raises(ValueError) as caught:
        dictlearn.load("owner/tiny")
    assert "there are some in layers/layer_0, layers/layer_1: ask for owner/tiny/<folder>" in str(
        caught.value
    )
    assert not kept(cache)


def test_a_set_of_transcoders_at_the_root(hub, tmp_path):
    (tmp_path / "set").mkdir()
    whole = built("plt")
    CircuitTracer().write(job(whole), tmp_path / "set")
    put(hub, tmp_path / "set")
    assert dictlearn.load("owner/tiny").sources == whole.sources


SAYS = {
    (
        401,
        "GatedRepo",
        "",
    ): "its owner wants its terms accepted at https://huggingface.co/owner/tiny",
    (401, "RepoNotFound", ""): "no such dictionary on the hub, unless it is private: then log in",
    (404, "RevisionNotFound", ""): "^revision=v2: owner/tiny has no such branch, tag or commit",
    (429, "", ""): r"takes no more requests from here for now \(rate limit\)",
    (
        401,
        "",
        "Invalid credentials in Authorization header",
    ): "does not accept your token; log in anew",
    (403, "", ""): "the hub refuses access to it; log in",
    (503, "", ""): "answers with status 503 and no local copy was found at revision v2",
}


@pytest.mark.parametrize("answer", SAYS, ids=str)
def test_what_the_hub_says_becomes_one_sentence(hub, answer):
    hub.status, hub.error, hub.message = answer
    with pytest.raises(ValueError, match=SAYS[answer]) as caught:
        dictlearn.load("owner/tiny", revision="v2")
    assert str(caught.value).isprintable()


def test_what_was_fetched_serves_when_the_hub_does_not(hub, tmp_path):
    put(hub, lens(tmp_path / "one"))
    dictlearn.load("owner/tiny")
    hub.status = 503
    assert dictlearn.load("owner/tiny").sources == ("resid_pre.2",)


def test_out_of_reach_is_said(cache):
    with pytest.raises(
        ValueError, match="^owner/tiny: the hub cannot be reached and no local copy"
    ):
        dictlearn.load("owner/tiny")


@pytest.mark.parametrize("name", ["runs/nothere", "mine/lens/layer_3"])
def test_a_folder_that_is_not_there_is_no_hub_id_first(cache, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match=f"^{name}: no such folder; as a hub id: the hub cannot"):
        dictlearn.load(name)


@pytest.mark.parametrize(
    "name", ["nowhere", "./nowhere/x", "/no/where", "owner/name/../x", "a b/c"]
)
def test_neither_folder_nor_hub_id(cache, name):
    with pytest.raises(ValueError, match="no such folder, and not a hub id"):
        dictlearn.load(name)
