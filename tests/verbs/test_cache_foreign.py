"""`dictlearn cache stored_as=`: what other tools' formats hold is what our own store holds."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest
import torch
from safetensors.torch import load_file

from dictlearn.activations.formats import open_store
from dictlearn.activations.place import LocalPlace
from tests.lines import settled
from tests.verbs.test_cache import dictlearn_cache, dictlearn_trains

TEXT = ["data.context=64", "data.max_tokens=4000", "shard_tokens=512", "tokens=1000"]
SITES = ["resid_post.1", "mlp_in.1"]
LLAMASCOPIUM = ["stored_as=llamascopium", f"sites=[{','.join(SITES)}]", *TEXT]
SAELENS = ["stored_as=saelens", "sites=[resid_post.1]", "order=windows", "special=keep"]
SAELENS += ["dtype=float32", *TEXT]
HOOKS = {"resid_post.1": "blocks.1.hook_resid_post", "mlp_in.1": "blocks.1.mlp.hook_in"}


def cached(folder: Path, output: str, *overrides: str) -> int:
    return dictlearn_cache(folder, *settled(f"output={output}", *overrides))


def rows(folder: Path, site: str) -> list[tuple[float, ...]]:
    """All kept rows of a store, in any order."""
    store = open_store(LocalPlace(folder))
    name = site if site in store.info.sites else HOOKS[site]
    found: list[tuple[float, ...]] = []
    for number, n in enumerate(store.info.shard_rows):
        shard = store.shard(number, [name])
        x_ND = shard.rows(name, 0, n).float()
        kept_N = shard.kept_N
        found += map(tuple, (x_ND if kept_N is None else x_ND[kept_N])[:, :4].tolist())
    return sorted(found)


@pytest.mark.parametrize("order", ["shuffled", "windows"])
def test_chunks_of_llamascopium_hold_the_rows_of_our_store(tmp_path, order):
    assert cached(tmp_path, "theirs", *LLAMASCOPIUM, f"order={order}") == 0
    assert cached(tmp_path, "ours", *LLAMASCOPIUM, "stored_as=dictlearn") == 0
    for site, hook in HOOKS.items():
        assert rows(tmp_path / "theirs", site) == rows(tmp_path / "ours", site)
        chunk = load_file(tmp_path / "theirs" / hook / "chunk-00000000.safetensors")
        assert set(chunk) == {"activation", "tokens", "mask", "attention_mask"}
        assert chunk["activation"].dtype == torch.bfloat16
        assert chunk["activation"].shape[:-1] == chunk["tokens"].shape == chunk["mask"].shape
        assert chunk["tokens"].dim() == {"shuffled": 1, "windows": 2}[order]
        meta = json.loads((tmp_path / "theirs" / hook / "chunk-00000000.meta.json").read_text())
        assert len(meta) == len(chunk["tokens"]) and meta[0]["model_name"] == "pico"
    tokens = [
        load_file(tmp_path / "theirs" / hook / "chunk-00000001.safetensors")["tokens"]
        for hook in HOOKS.values()
    ]
    assert torch.equal(*tokens)


def test_a_data_set_of_saelens_is_read_by_datasets_and_by_us(tmp_path):
    assert cached(tmp_path, "theirs", *SAELENS) == 0
    assert cached(tmp_path, "ours", *SAELENS, "stored_as=dictlearn") == 0
    data = datasets.load_from_disk(str(tmp_path / "theirs"))
    assert isinstance(data, datasets.Dataset)
    hook = HOOKS["resid_post.1"]
    assert data.features[hook].shape == (64, 256)
    store = open_store(LocalPlace(tmp_path / "ours"))
    x_PD, tokens_P = [], []
    for number in range(2):
        shard = store.shard(number, ["resid_post.1"])
        assert shard.windows is not None
        ends = shard.windows.kept_BP.sum(1).cumsum(0).tolist()
        for tokens, kept, end in zip(*shard.windows, ends, strict=True):
            if kept.all():  # a window that ends in padding is left out
                x_PD.append(shard.rows("resid_post.1", end - 64, end))
                tokens_P.append(tokens.long())
    assert 8 <= len(x_PD) < 16
    written = data.with_format("torch")[:]
    assert torch.equal(written[hook], torch.stack(x_PD))
    assert torch.equal(written["token_ids"], torch.stack(tokens_P))
    theirs = open_store(LocalPlace(tmp_path / "theirs"))
    read = [theirs.shard(i, [hook]).rows(hook, 0, n) for i, n in enumerate(theirs.info.shard_rows)]
    assert torch.equal(torch.cat(read), torch.cat(x_PD))


@pytest.mark.parametrize("options", [LLAMASCOPIUM, SAELENS])
def test_the_same_command_makes_what_is_missing_and_nothing_else(tmp_path, capsys, options):
    assert cached(tmp_path, "acts", *options) == 0
    files = sorted(path for path in (tmp_path / "acts").rglob("*0000[01]*") if path.is_file())
    before = {path: path.read_bytes() for path in files}
    lost = next(path for path in files if "00001" in path.name and "meta" not in path.name)
    lost.unlink()
    kept = [path for path in files if "chunk-00000000" in path.name or "data-00000" in path.name]
    times = {path: path.stat().st_mtime_ns for path in kept}
    assert cached(tmp_path, "acts", *options, "partition=0/2") == 0  # not this part's
    assert "1 of 2 shards are there; other parts make the others" in capsys.readouterr().err
    assert not lost.exists()
    assert cached(tmp_path, "acts", *options) == 0
    assert {path: path.read_bytes() for path in files} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    longer = [*options, "tokens=1500"]
    assert cached(tmp_path, "acts", *longer) == 0
    assert "3 shards" in capsys.readouterr().err
    assert len(open_store(LocalPlace(tmp_path / "acts")).info.shard_rows) == 3
    assert cached(tmp_path, "acts", *options, "seed=1") == 2
    assert "its shards have seed=0, these would have 1" in capsys.readouterr().err


def test_training_reads_what_was_written(tmp_path):
    assert cached(tmp_path, "acts", *LLAMASCOPIUM, "order=windows", "tokens=null") == 0
    assert dictlearn_trains(tmp_path, *TEXT[:2], "steps=2", "source.buffer_tokens=1024") == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([*SAELENS, "order=shuffled"], "stored_as=saelens: holds whole windows"),
        ([*SAELENS, "dtype=bfloat16"], "want order=windows special=keep nonfinite=error dtype="),
        ([*SAELENS, "sites=[resid_post.1,mlp_in.1]"], "stored_as=saelens has one site in a folder"),
        ([*SAELENS, "verify=true"], "stored_as=saelens has no hashes to compare"),
        ([*LLAMASCOPIUM, "dtype=int8"], "stored_as=llamascopium has no scales"),
        ([*LLAMASCOPIUM, "sites=['model.layers.1:output']"], "TransformerLens' names"),
        ([*LLAMASCOPIUM, "order=windows", "nonfinite=drop"], "has whole windows; want error"),
        ([*LLAMASCOPIUM, "stored_as=sparsify"], "stored_as=sparsify: want"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_before_work(tmp_path, capsys, options, sentence):
    assert cached(tmp_path, "acts", *options) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "acts").exists()


def test_a_folder_of_one_format_does_not_become_another(tmp_path, capsys):
    assert cached(tmp_path, "acts", *LLAMASCOPIUM, "tokens=100") == 0
    assert cached(tmp_path, "acts", *LLAMASCOPIUM, "stored_as=dictlearn") == 2
    assert "acts" in capsys.readouterr().err
