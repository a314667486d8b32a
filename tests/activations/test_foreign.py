"""Stores of other tools: their rows come back exactly, and damage is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dictlearn.activations import remote
from dictlearn.activations.formats import open_store, registry
from dictlearn.activations.place import LocalPlace
from dictlearn.sources import row_stream
from dictlearn.sources.cached import CachedSource
from dictlearn.sources.cached_windows import CachedWindowsSource
from dictlearn.sources.protocol import NoText
from tests.activations import foreign
from tests.activations.foreign import FORMATS, SHARDS, WINDOWS, Made
from tests.activations.made import model
from tests.sources.test_live import BOS, CONTEXT, PAD, WIDTH, equal

LAYOUTS: dict[str, Callable[..., Made]] = {
    **FORMATS,
    "llamascopium, rows": partial(foreign.llamascopium, flat=True),
    "llamascopium, torch.save": partial(foreign.llamascopium, ending="pt"),
    "clt_forge, zstd": partial(foreign.clt_forge, stored="int8", codec="zstd"),
    "clt_forge, lz4": partial(foreign.clt_forge, stored="none", codec="lz4"),
    "clt_forge, packed": partial(foreign.clt_forge, stored="int8", codec="none"),
    "saelens, float16": partial(foreign.saelens, dtype="float16"),
}


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_stream, "LEAST_RUN", 8)
    monkeypatch.setattr(remote, "PATIENCE", 0.0)


def lm() -> Any:
    info = replace(model().info, name="some/tiny")
    return replace(model(), info=info, special_ids=frozenset({BOS, PAD}))


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
    return kind(lm(), path=str(path), **{**settings, **options})


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
            assert torch.equal(shard.rows(site, 3, 29), rows[3:29])
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
    with pytest.raises(ValueError, match=r"^source.path=memory://.* has no resid_pre.0; it has"):
        source(address, sources=("resid_pre.0",))


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


# --- damage -----------------------------------------------------------------------------------


def one_file(folder: Path) -> Path:
    """The second shard's file, of the first site."""
    endings = ("*.safetensors", "*.arrow", "*.pt", "*.parquet", "*.bin")
    files = sorted(path for ending in endings for path in folder.rglob(ending))
    return next(path for path in files if "00001" in path.name or "split_1" in path.name)


@pytest.mark.parametrize("how", ["truncated", "missing", "empty", "noise"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_damaged_shard_is_named_or_left_out(tmp_path, layout, how, caplog):
    made = LAYOUTS[layout](tmp_path / "s")
    path = one_file(tmp_path / "s")
    data = path.read_bytes()
    in_names = [s for s in made.sites if hook_of(s) in str(path)]
    site = next(iter(in_names or made.sites))
    match how:
        case "truncated":
            path.write_bytes(data[: len(data) - 400])
        case "missing":
            path.unlink()
        case "empty":
            path.write_bytes(b"")
        case "noise":
            path.write_bytes(bytes(range(256)) * (len(data) // 256 + 1))
    options: Any = {"sources": (site,), "targets": (site,)}
    with pytest.raises(ValueError, match="^source.on_damage=stop: ") as refused:
        rows_of(source(tmp_path / "s", **options), made)
    assert path.stem in str(refused.value) and "\n" not in str(refused.value)
    skipping = source(tmp_path / "s", on_damage="skip", **options)
    left = [rows for n, rows in enumerate(made.sites[site]) if n != 1]
    assert set(rows_of(skipping, made)) == {tuple(row) for rows in left for row in rows.tolist()}
    assert sum(path.stem in record.message for record in caplog.records) == 1


def hook_of(site: str) -> str:
    kind, layer = site.split(".")
    return f"blocks.{layer}.hook_{kind}"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_that_are_not_finite_are_damage(tmp_path, layout, bad, monkeypatch):
    plain = foreign.values

    def broken(seed: int, *args: Any, **options: Any) -> Tensor:
        x = plain(seed, *args, **options)
        if seed in (1, 10):  # a shard's first site in every layout
            x[(0, 5) if x.shape[1] == CONTEXT else (5, 0)][2] = bad
        return x

    monkeypatch.setattr(foreign, "values", broken)
    made = LAYOUTS[layout](tmp_path / "s")
    site = next(iter(made.sites))
    stream = source(tmp_path / "s", sources=(site,), targets=(site,))
    with pytest.raises(ValueError, match="is damaged: row [05] has values that are not finite"):
        rows_of(stream, made)


def rewritten(folder: Path, hook: str, **tensors: Tensor | None) -> Path:
    path = folder / hook / "chunk-00000001.safetensors"
    found = {**load_file(path), **tensors}
    save_file({name: t for name, t in found.items() if t is not None}, path)
    return path


IDS = torch.zeros(WINDOWS, CONTEXT, dtype=torch.int64)


@pytest.mark.parametrize(
    "tensors",
    [
        {"activation": None},
        {"activation": torch.zeros(WINDOWS, CONTEXT, WIDTH)},
        {"activation": torch.zeros(WINDOWS, CONTEXT, WIDTH + 1, dtype=torch.bfloat16)},
        {"activation": torch.zeros(WINDOWS, CONTEXT, WIDTH, dtype=torch.int64)},
        {"activation": torch.zeros(WIDTH, dtype=torch.bfloat16)},
        {"tokens": None},
        {"tokens": IDS[:, :-1].contiguous()},
        {"tokens": IDS.float()},
        {"tokens": IDS},
        {"mask": IDS},
        {"mask": IDS[0]},
    ],
    ids=str,
)
def test_a_chunk_of_other_shapes_is_refused(tmp_path, tensors):
    foreign.llamascopium(tmp_path / "s")
    path = rewritten(tmp_path / "s", "blocks.1.hook_resid_post", **tensors)
    both = ("resid_post.1", "mlp_out.1")
    with pytest.raises(ValueError, match="^source") as refused:
        stream = source(tmp_path / "s", sources=both, targets=both)
        for _ in range(8):
            stream.next_batch()
    known = (path.name in str(refused.value), "shard 1" in str(refused.value))
    assert any(known) and "\n" not in str(refused.value)


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return Path.touch, (Path("it-ran"),)


def test_no_pickle_is_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    foreign.llamascopium(tmp_path / "s", ending="pt")
    path = tmp_path / "s" / "blocks.1.hook_resid_post" / "chunk-00000001.pt"
    torch.save({**torch.load(path, weights_only=True), "meta": Harmful()}, path)
    with pytest.raises(
        ValueError, match="chunk-00000001.pt: is not a readable file.*could run code"
    ):
        source(tmp_path / "s")
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("dataset_info.json", {"features": {}}),
        ("dataset_info.json", {"features": {"x": {"_type": "Array2D", "shape": [8, 1 << 40]}}}),
        ("dataset_info.json", {"features": {"x": {"_type": "Array2D", "shape": [8, 16]}}}),
        ("dataset_info.json", []),
        ("state.json", {"_data_files": [{"filename": "../elsewhere.arrow"}]}),
        ("state.json", {"_data_files": []}),
        ("state.json", {}),
    ],
    ids=str,
)
def test_a_data_set_that_says_nonsense_is_refused(tmp_path, name, content):
    foreign.saelens(tmp_path / "s")
    (tmp_path / "s" / name).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"^{tmp_path}/s/{name} ") as refused:
        source(tmp_path / "s")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "columns",
    [
        {"x": torch.zeros(WINDOWS, CONTEXT, WIDTH)},
        {"blocks.1.hook_resid_post": torch.zeros(WINDOWS, CONTEXT, WIDTH + 1)},
        {"blocks.1.hook_resid_post": torch.zeros(WINDOWS, CONTEXT - 1, WIDTH)},
        {"blocks.1.hook_resid_post": torch.zeros(WINDOWS, CONTEXT, WIDTH, dtype=torch.float64)},
        {"blocks.1.hook_resid_post": torch.zeros(WINDOWS, WIDTH)},
        {"token_ids": torch.zeros(WINDOWS, CONTEXT, dtype=torch.int64)},
        {"token_ids": torch.zeros(WINDOWS, CONTEXT + 1, dtype=torch.int32)},
    ],
    ids=lambda c: f"{next(iter(c))} {list(next(iter(c.values())).shape)}",
)
def test_an_arrow_file_of_other_shapes_is_refused(tmp_path, columns):
    foreign.saelens(tmp_path / "s")
    right = {
        "blocks.1.hook_resid_post": torch.zeros(WINDOWS, CONTEXT, WIDTH),
        "token_ids": torch.ones(WINDOWS, CONTEXT, dtype=torch.int32),
    }
    name = "data-00001-of-00003.arrow"
    columns = columns if "x" in columns else {**right, **columns}
    foreign.write_arrow(tmp_path / "s" / name, columns, [WINDOWS])
    with pytest.raises(
        ValueError, match=f"^source.on_damage=stop: .*{name} is damaged: "
    ) as refused:
        stream = source(tmp_path / "s")
        for _ in range(8):
            stream.next_batch()
    assert "\n" not in str(refused.value)
