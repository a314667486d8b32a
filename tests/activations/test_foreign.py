"""Stores of other tools: their rows come back exactly, and damage is named."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM

from dictlearn.activations import remote
from dictlearn.activations.formats import open_store, registry
from dictlearn.activations.place import LocalPlace, opened
from dictlearn.lm.language_model import freeze
from dictlearn.sources import row_stream
from dictlearn.sources.cached import CachedSource
from dictlearn.sources.cached_windows import CachedWindowsSource
from dictlearn.sources.protocol import NoText
from tests.activations import foreign
from tests.activations.foreign import FORMATS, LAYOUTS, NAMES, SHARDS, WINDOWS, Made
from tests.activations.made import model
from tests.sources.test_live import BOS, CONTEXT, PAD, WIDTH, equal


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_stream, "LEAST_RUN", 8)
    monkeypatch.setattr(remote, "PATIENCE", 0.0)


def lm() -> Any:
    info = replace(model().info, name="some/tiny")
    return replace(model(), info=info, special_ids=frozenset({BOS, PAD}))


@cache
def gemma() -> Any:
    config = Gemma2Config(
        vocab_size=model().info.vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
    )
    return freeze(Gemma2ForCausalLM(config))


def source(path: Path | str, kind: type = CachedSource, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "windows": NoText(CONTEXT),
        "sources": ("resid_post.1",),
        "targets": ("resid_post.1",),
        "batch_tokens": 16,
        "seed": 0,
        "open_shards": 2,
        **({"buffer_tokens": 40, "batch_dtype": "stored"} if kind is CachedSource else {}),
    }
    names = NAMES.get(open_store(opened(str(path))).name)
    return kind(
        options.pop("of", None) or lm(), path=str(path), **{**settings, "names": names, **options}
    )


def rows_of(stream: Any, made: Made) -> list[tuple[float, ...]]:
    """As many rows as an epoch has, and a few more that a buffer holds."""
    rows = sum(map(len, next(iter(made.sites.values()))))
    batches = [stream.next_batch() for _ in range(3 * rows // 16)]
    x = torch.cat([b.x_NSD for b in batches]).flatten(1)
    return [tuple(row) for row in x.tolist()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_that_were_written(tmp_path, layout):
    made = LAYOUTS[layout](tmp_path / "s")
    sites = list(made.sites)
    stream = source(tmp_path / "s", sources=tuple(sites), targets=tuple(sites))
    for number in range(SHARDS):
        shard = stream._store.shard(number, sites)
        kept_N = shard.kept_N
        for site in sites:
            rows = shard.rows(site, 0, len(shard.tokens_N))
            written = made.sites[site][number]
            assert rows.dtype == written.dtype == stream._store.info.dtype
            assert torch.equal(rows if kept_N is None else rows[kept_N], written)
            assert torch.equal(shard.rows(site, 3, 19), rows[3:19])
        tokens_N = shard.tokens_N if kept_N is None else shard.tokens_N[kept_N]
        if made.tokens is not None:
            assert torch.equal(tokens_N.long(), made.tokens[number].long())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_stream_has_these_rows_and_no_others(tmp_path, layout):
    made = LAYOUTS[layout](tmp_path / "s")
    site = next(iter(made.sites))
    written = {tuple(row) for rows in made.sites[site] for row in rows.tolist()}
    seen = rows_of(source(tmp_path / "s", sources=(site,), targets=(site,)), made)
    assert set(seen) == written


@pytest.mark.parametrize("name", FORMATS)
def test_resume_is_bit_exact(tmp_path, name):
    made = FORMATS[name](tmp_path / "s")
    sites: Any = {"sources": tuple(made.sites)[:1], "targets": tuple(made.sites)[-1:]}
    straight = source(tmp_path / "s", **sites)
    for _ in range(5):
        straight.next_batch()
    resumed = source(tmp_path / "s", threads=1, **sites)
    resumed.restore(straight.state())
    for _ in range(12):
        assert equal(resumed.next_batch(), straight.next_batch())


@pytest.mark.parametrize("name", FORMATS)
def test_a_store_at_an_address_is_read_as_a_folder_is(tmp_path, name):
    made = FORMATS[name](tmp_path / "s")
    address = f"memory://{tmp_path.name}/s"
    fs, root = fsspec.core.url_to_fs(address)
    fs.put(str(tmp_path / "s"), root, recursive=True)
    sites: Any = {"sources": tuple(made.sites)[:1], "targets": tuple(made.sites)[:1]}
    here, there = source(tmp_path / "s", **sites), source(address, **sites)
    assert all(equal(here.next_batch(), there.next_batch()) for _ in range(8))
    with pytest.raises(ValueError, match=r"^source.path=memory://.* has no resid_pre.0; it has "):
        source(address, sources=("resid_pre.0",), names=None)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_found_by_its_files_alone(tmp_path, name):
    FORMATS[name](tmp_path / "s")
    place = LocalPlace(tmp_path / "s")
    assert [n for n, store in registry().items() if store.recognises(place)] == [name]
    assert open_store(place).name == name


def test_a_folder_of_something_else_is_told_what_is_recognised(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="has no activations in a known format") as refused:
        open_store(LocalPlace(tmp_path))
    for name, store in registry().items():
        assert f"{name} ({store.files})" in str(refused.value)
    assert "\n" not in str(refused.value)


# --- names, models, special tokens ------------------------------------------------------------


def test_a_site_under_another_name_is_named_by_the_user(tmp_path):
    made = foreign.llamascopium(tmp_path / "s")
    for old, new in {"blocks.1.hook_resid_post": "layer-one"}.items():
        (tmp_path / "s" / old).rename(tmp_path / "s" / new)
    with pytest.raises(ValueError, match="has no resid_post.1; it has .*source.names={<site>: "):
        source(tmp_path / "s")
    named = source(tmp_path / "s", names={"resid_post.1": "layer-one"})
    written = {tuple(row) for rows in made.sites["resid_post.1"] for row in rows.tolist()}
    assert set(rows_of(named, made)) == written
    with pytest.raises(ValueError, match="source.names says that its nothing is resid_post.1"):
        source(tmp_path / "s", names={"resid_post.1": "nothing"})


@pytest.mark.parametrize(
    ("name", "site", "sentence"),
    [
        (
            "activault",
            "resid_pre.1",
            "self_attn.pre: where no hook caught it, .*before the layer or",
        ),
        ("bionemo", "resid_post.1", "it has activations: metadata.json says only that .* layer 1;"),
    ],
)
def test_a_name_that_may_mean_several_things_is_not_guessed(tmp_path, name, site, sentence):
    FORMATS[name](tmp_path / "s")
    with pytest.raises(ValueError, match=f"has no {site}; .*{sentence}.*source.names="):
        source(tmp_path / "s", sources=(site,), targets=(site,), names=None)


def test_a_module_before_a_norm_is_not_what_is_added_to_the_residual(tmp_path):
    foreign.activault(tmp_path / "s", width=gemma().info.width)
    with pytest.raises(ValueError, match="has no mlp_out.1; it has .*model.layers.1.mlp:output"):
        own_site = ("mlp_out.1",)
        source(tmp_path / "s", sources=own_site, targets=own_site, model="any", of=gemma())
    raw = ("model.layers.1.mlp:output",)
    stream = source(tmp_path / "s", sources=raw, targets=raw, model="any", of=gemma())
    assert stream.next_batch().x_NSD.shape[1:] == (1, gemma().info.width)


def test_a_hidden_state_of_the_last_layer_is_said_to_be_after_the_norm(tmp_path, caplog):
    foreign.activault(tmp_path / "s")
    old = tmp_path / "s/models.layers.1.mlp.post"
    old.rename(old.with_name("blocks.1.hook_resid_post"))
    with caplog.at_level(logging.WARNING):
        source(tmp_path / "s", windows=[], names=None)
    assert "for the model's last layer, that is after the last norm" in caplog.text


def test_a_store_of_another_model_is_refused_unless_that_is_asked_for(tmp_path):
    foreign.llamascopium(tmp_path / "s")
    for path in (tmp_path / "s").rglob("*.meta.json"):
        path.write_text(json.dumps([{"model_name": "org/other"}]))
    with pytest.raises(ValueError, match="are of 'org/other', and model.path=some/tiny.*model=any"):
        source(tmp_path / "s")
    assert source(tmp_path / "s", model="any").next_batch().x_NSD.shape == (16, 1, WIDTH)


def test_what_is_not_known_is_said(tmp_path, caplog):
    foreign.saelens(tmp_path / "s")
    with caplog.at_level(logging.WARNING):
        source(tmp_path / "s", windows=[])
    assert "not checked, as the store does not have it: model, weights" in caplog.text


def test_special_tokens_are_kept_if_that_is_asked_for(tmp_path):
    foreign.saelens(tmp_path / "s")
    kept = source(tmp_path / "s", special="keep")
    tokens = torch.cat([kept.next_batch().tokens_N for _ in range(12)])
    assert (tokens == BOS).any()
    left_out = source(tmp_path / "s")
    assert not (torch.cat([left_out.next_batch().tokens_N for _ in range(12)]) == BOS).any()


def test_tokens_of_another_tokenizer_are_refused(tmp_path):
    foreign.llamascopium(tmp_path / "s")
    for path in (tmp_path / "s").rglob("*.safetensors"):
        save_file({**(t := load_file(path)), "tokens": t["tokens"] + 10**6}, path)
    with pytest.raises(ValueError, match="token ids that are not all from 0 to"):
        source(tmp_path / "s").next_batch()


def test_windows_have_the_rows_that_the_mask_keeps(tmp_path):
    made = foreign.llamascopium(tmp_path / "s")
    stream = source(tmp_path / "s", CachedWindowsSource, batch_tokens=2 * CONTEXT)
    seen: list[Tensor] = []
    for _ in range(SHARDS * WINDOWS // 2):
        batch = stream.next_batch()
        assert batch.tokens_BP is not None and batch.valid_BP is not None
        assert torch.equal(batch.valid_BP, batch.tokens_BP != BOS)
        assert torch.equal(batch.tokens_BP[batch.valid_BP], batch.tokens_N)
        seen.append(batch.x_NSD[:, 0])
    written = torch.cat(made.sites["resid_post.1"])
    assert sorted(torch.cat(seen).tolist()) == sorted(written.tolist())
    foreign.saelens(tmp_path / "other")
    with pytest.raises(ValueError, match="its rows are not kept in windows of text"):
        source(tmp_path / "other", CachedWindowsSource)
