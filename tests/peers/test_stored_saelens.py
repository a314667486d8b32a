"""We train on what SAELens caches: its own runner writes a folder, and its rows come back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dictlearn.activations.formats import open_store
from dictlearn.activations.place import LocalPlace
from tests.verbs.test_cache import dictlearn_cache

pytestmark = pytest.mark.peers

CONTEXT, WIDTH, HOOK = 16, 32, "blocks.1.hook_resid_post"


def cached(folder: Path) -> torch.Tensor:
    """A folder that `CacheActivationsRunner` makes of tensors; returns what was stored."""
    from datasets import Array2D, Features, Sequence, Value
    from sae_lens.cache_activations_runner import CacheActivationsRunner

    x_BPD = torch.randn(12, CONTEXT, WIDTH)
    tokens_BP = torch.arange(12 * CONTEXT).view(12, CONTEXT)
    runner = CacheActivationsRunner.__new__(CacheActivationsRunner)  # without a model
    runner.features = Features(
        {
            HOOK: Array2D(shape=(CONTEXT, WIDTH), dtype="float32"),
            "token_ids": Sequence(Value(dtype="int32"), length=CONTEXT),
        }
    )
    runner.context_size = CONTEXT
    runner.cfg = type("Settings", (), {"hook_name": HOOK, "d_in": WIDTH, "n_seq_in_buffer": 6})()
    parts = folder / ".tmp_shards"
    parts.mkdir(parents=True)
    for n in range(2):
        rows = slice(6 * n, 6 * n + 6)
        part = runner._create_shard((x_BPD[rows].flatten(0, 1), tokens_BP[rows].flatten()))
        part.save_to_disk(str(parts / f"shard_{n:05d}"), num_shards=1)
    runner._consolidate_shards(parts, folder, copy_files=False)
    return x_BPD.flatten(0, 1)


def test_what_saelens_cached_is_read(tmp_path):
    written = cached(tmp_path / "acts")
    store = open_store(LocalPlace(tmp_path / "acts"))
    assert store.name == "saelens" and store.info.sites == (HOOK,) and not store.info.absent
    assert store.info.widths == {HOOK: WIDTH} and store.info.rows == 12 * CONTEXT
    shards = [store.shard(number, [HOOK]) for number in range(2)]
    rows = [shard.rows(HOOK, 0, len(shard.tokens_N)) for shard in shards]
    assert torch.equal(torch.cat(rows), written)
    tokens_N = torch.cat([shard.tokens_N for shard in shards])
    assert tokens_N.tolist() == list(range(12 * CONTEXT))


def test_saelens_reads_what_we_wrote(tmp_path, monkeypatch):
    from sae_lens.training.activations_store import ActivationsStore

    options = ["stored_as=saelens", "sites=[resid_post.1]", "order=windows", "special=keep"]
    options += ["dtype=float32", "data.context=64", "data.max_tokens=4000", "shard_tokens=512"]
    assert dictlearn_cache(tmp_path, *options, "output=theirs") == 0
    store = ActivationsStore.__new__(ActivationsStore)  # without a model
    store.cached_activations_path = str(tmp_path / "theirs")
    store.hook_name, store.device, store.dtype = HOOK, torch.device("cpu"), torch.float32
    store.context_size, store.d_in = 64, 256
    data = store.load_cached_activation_dataset()
    assert data is not None
    ours = open_store(LocalPlace(tmp_path / "theirs"))
    shard = ours.shard(0, [HOOK])
    n = ours.info.shard_rows[0] // 64
    assert torch.equal(data[:n][HOOK].flatten(0, 1), shard.rows(HOOK, 0, 64 * n))
    assert torch.equal(data[:n]["token_ids"].flatten().long(), shard.tokens_N.long())
    assert len(data) * 64 == ours.info.rows
