"""Published dictionaries by name: every yaml is whole, and a name is a whole command."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import dictlearn
from dictlearn import cli, config, published
from dictlearn.ckpt.foreign import importers
from tests.pretend_hub import empty_cache

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)*")
MORE = {"l0", "layers", "text"}


@pytest.mark.parametrize("release", published.releases())
def test_every_release_is_whole(release):
    found = published._read(release)
    assert {"path", "site", "model"} <= found.keys() <= {"path", "site", "model"} | MORE
    assert config.summary(config.conf_dir() / "published" / f"{release}.yaml")
    layers, _ = published._layers_of(found)
    names = [f"{release}_l{layer}" for layer in layers] or [release]
    places = set()
    for name in names:
        one = published.named(name)
        assert one is not None and HUB_ID.fullmatch(one.path) and "{" not in one.site
        assert one.model in config.options("model") or HUB_ID.fullmatch(one.model)
        places.add(one.path)
    assert len(places) == len(names)
    assert not release.endswith(tuple(f"_l{i}" for i in range(10)))


def composed(verb: str, *overrides: str):
    return config.compose(verb, config.translated(published.expanded(verb, overrides)))


def test_a_name_is_a_whole_command():
    cfg = composed("features", "dictionary=gemma_scope_2b_res_l12")
    assert cfg.dictionary == "google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    assert cfg.model.path == "google/gemma-2-2b"
    assert cfg.data.path == "monology/pile-uncopyrighted"
    cfg = composed("train", "init=qwen_scope_8b_l7", "dict=sae")
    assert cfg.init == "Qwen/SAE-Res-Qwen3-8B-Base-W64K-L0_50/layer7.sae.pt"
    assert cfg.model.path == "pico"


def test_what_the_command_names_is_kept():
    own = ("model=pico", "data=stdlib")
    cfg = composed("evaluate", "dictionary=gemma_scope_2b_res_l12", *own)
    assert cfg.model.path == "pico" and "path" not in cfg.data
    several = published.expanded(
        "evaluate", ["dictionary=gemma_scope_2b_res_l1,gemma_scope_2b_mlp_l2"]
    )
    assert several[0].count("google/") == 2 and several[1] == "model=gemma2_2b"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (
            "gemma_scope_2b_res",
            "want a layer too; gemma_scope_2b_res has layers 0 to 25, so want such as "
            "gemma_scope_2b_res_l13",
        ),
        (
            "gpt2_res_jb_l99",
            "there is no layer 99; gpt2_res_jb has layers 0 to 11, so want such as gpt2_res_jb_l6",
        ),
        (
            "andyrdt_llama3_8b_l4",
            "has layers 3, 7, 11, 15, 19, 23, 27, so want such as andyrdt_llama3_8b_l15",
        ),
        ("goodfire_llama3_8b_l3", "one dictionary; want goodfire_llama3_8b, without a layer"),
        ("gemma_scop_2b_res_l12", "no such folder; did you mean gemma_scope_2b_res_l12?"),
        ("gemma_scop_2b_res_l99", "no such folder; did you mean gemma_scope_2b_res_l13?"),
        ("gemma_scop_2b_res", "no such folder; did you mean gemma_scope_2b_res_l13?"),
    ],
)
def test_a_name_that_is_not_quite_one(name, says):
    with pytest.raises(ValueError, match=rf"^{name}: .*{re.escape(says)}$"):
        published.expanded("features", [f"dictionary={name}"])


def test_other_words_and_folders_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2_res_jb_l8").mkdir()
    for text in ("dictionary=gpt2_res_jb_l8", "dictionary=my/folder", "dictionary=x", "init=null"):
        assert published.expanded("features", [text]) == [text]
    with pytest.raises(ValueError, match="of several models"):
        published.expanded("features", ["dictionary=gemma_scope_2b_res_l1,gpt2_res_jb_l7"])


def test_out_of_reach_it_says_what_to_download_and_what_to_give(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    empty_cache(tmp_path / "cache", monkeypatch)
    words = ["dictlearn", "features", "dictionary=gemma_scope_2b_res_l12", "model=gemma2_2b"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    inner = "layer_12/width_16k/average_l0_82"
    assert "the hub cannot be reached and no local copy was found" in said
    assert (
        f"`hf download google/gemma-scope-2b-pt-res --include '{inner}/*' --local-dir "
        f"gemma-scope-2b-pt-res`, and give <where it is>/gemma-scope-2b-pt-res/{inner}" in said
    )
    with pytest.raises(ValueError, match="hf download Qwen/SAE.*--include 'layer3.sae.pt' --local"):
        dictlearn.load("qwen_scope_1_7b_l3")
    assert {path.name for path in Path().iterdir()} <= {"cache", "features"}


def test_the_page_lists_every_release():
    page = Path(__file__).parents[1].joinpath("docs", "published.md").read_text(encoding="utf-8")
    assert [name for name in published.releases() if f"`{name}" not in page] == []
    assert len(importers()) >= 11
