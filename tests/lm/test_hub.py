"""Hub ids, against a hub of our own on this machine: what is fetched, kept, and said when it fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModelForCausalLM

from dictlearn.lm.hub import PICO_PATH
from dictlearn.lm.load import load_model, load_skeleton, load_tokenizer, read_info
from tests.pretend_hub import COMMIT, Hub, empty_cache, served


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return empty_cache(tmp_path / "cache", monkeypatch)


@pytest.fixture
def hub(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "made")
    hub = Hub({file.name: file.read_bytes() for file in (tmp_path / "made").iterdir()})
    hub.files |= {
        "README.md": b"words",
        "modeling_evil.py": b"1 / 0",
        "pytorch_model.bin": b"\x80\x04",
        "consolidated.safetensors": b"the same once more",
        "original/model.safetensors": b"and once more",
    }
    with served(hub, monkeypatch):
        yield hub


def test_a_hub_id_is_downloaded_and_its_commit_noted(hub, cache):
    lm = load_model("owner/tiny")
    assert lm.info.name == "owner/tiny" and lm.info.revision == COMMIT
    kept = {path.name for path in cache.rglob("snapshots/*/*")}
    assert kept == {"config.json", "generation_config.json", "model.safetensors"}
    assert not any("original" in ask or "evil" in ask or ".bin" in ask for ask in hub.asked)


def test_info_downloads_the_config_alone(hub, cache):
    info = read_info("owner/tiny")
    assert (info.n_layers, info.width, info.revision) == (2, 16, COMMIT)
    assert {path.name for path in cache.rglob("snapshots/*/*")} == {"config.json"}


@pytest.mark.parametrize(
    "load", [load_tokenizer, partial(load_skeleton, tokenizer=True)], ids=["alone", "with sizes"]
)
def test_a_tokenizer_comes_without_the_weights(hub, cache, load):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        hub.files[name] = (PICO_PATH / name).read_bytes()
    hub.files["config.json"] = hub.files["config.json"].replace(
        b'"vocab_size": 16', b'"vocab_size": 4096'
    )
    found = load("owner/tiny")
    assert getattr(found, "tokenizer", found) is not None
    assert "tokenizer.json" in {path.name for path in cache.rglob("snapshots/*/*")}
    assert not any("safetensors" in ask for ask in hub.asked)


@pytest.mark.parametrize(
    ("status", "error"), [(503, ""), (401, "GatedRepo"), (404, "RepoNotFound"), (429, "")]
)
def test_what_was_downloaded_serves_when_the_hub_does_not(hub, status, error):
    tokens = torch.arange(6).view(1, 6)
    before = load_model("owner/tiny").logits(tokens)
    hub.status, hub.error = status, error
    assert torch.equal(load_model("owner/tiny").logits(tokens), before)
    assert read_info("owner/tiny").revision == COMMIT


@pytest.mark.parametrize(
    ("status", "error", "says"),
    [
        (401, "GatedRepo", r"^model\.path=owner/tiny: its owner wants its terms accepted at "),
        (403, "", r"^model\.path=owner/tiny: the hub refuses access to it; log in"),
        (404, "RepoNotFound", r"^model\.path=owner/tiny: no such folder here and no such model"),
        (404, "RevisionNotFound", r"^model\.revision=v2: owner/tiny has no such branch"),
        (404, "EntryNotFound", r"^model\.path=owner/tiny: the repository has no config\.json"),
        (429, "", r"^model\.path=owner/tiny: the hub takes no more requests .* \(rate limit\)"),
        (503, "", r"answers with status 503 and no local copy was found at revision v2; try again"),
    ],
)
def test_what_the_hub_says_becomes_one_sentence(hub, status, error, says):
    hub.status, hub.error = status, error
    for load in (load_model, read_info):
        with pytest.raises(ValueError, match=says) as caught:
            load("owner/tiny", revision="v2")
        assert "\n" not in str(caught.value)


def test_a_repository_of_pickles_is_refused(hub):
    del hub.files["model.safetensors"]
    with pytest.raises(ValueError, match=r"^model\.path=owner/tiny: .*safetensors"):
        load_model("owner/tiny")


UNREACHABLE = (
    "model.path=Qwen/Qwen3-4B: the hub cannot be reached and no local copy was found; download it "
    "and pass model.path=<folder>"
)


@pytest.mark.parametrize("offline", [True, False], ids=["HF_HUB_OFFLINE=1", "no network"])
@pytest.mark.parametrize("load", [load_model, read_info])
def test_out_of_reach_it_takes_no_minute_to_say_so(cache, monkeypatch, offline, load):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    start = time.monotonic()
    with pytest.raises(ValueError) as caught:
        load("Qwen/Qwen3-4B")
    assert str(caught.value) == UNREACHABLE
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("path", ["./nowhere", "/no/where", "a b", "a/b/c", "", "-x", "a--b/c"])
def test_neither_folder_nor_hub_id(cache, path):
    with pytest.raises(ValueError, match="no such folder, and not a hub id"):
        load_model(path)


def test_a_folder_comes_before_a_hub_id_of_its_name(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "made").rename(tmp_path / "owner" / "tiny")
    assert load_model("owner/tiny").info.revision is None
    assert hub.asked == []
