"""Stores of other tools that are damaged, or hostile: a sentence names the file, and nothing runs."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.activations import foreign
from tests.activations.foreign import FORMATS, LAYOUTS, WINDOWS
from tests.activations.test_foreign import lm, rows_of, source
from tests.sources.test_live import CONTEXT, WIDTH

METADATA = "models.layers.1.mlp.pre/metadata.json"


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
    known = re.split(r"--|\.", path.name)[0]
    in_names = [s for s in made.sites if hook_of(s) in str(path)]
    site = "mlp_out.1" if "mlp.post" in str(path) else next(iter(in_names or made.sites))
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
    assert known in str(refused.value) and "\n" not in str(refused.value)
    skipping = source(tmp_path / "s", on_damage="skip", **options)
    left = [rows for n, rows in enumerate(made.sites[site]) if n != 1]
    assert set(rows_of(skipping, made)) == {tuple(row) for rows in left for row in rows.tolist()}
    assert sum(known in record.message for record in caplog.records) == 1


def hook_of(site: str) -> str:
    kind, layer = site.split(".")
    return f"blocks.{layer}.hook_{kind}"


def first(x: Tensor) -> Tensor:
    """The sixth row of the first site: of rows, of rows of two layers, or of windows."""
    if x.dim() == 2:
        return x[5]
    return x[5, 0] if x.shape[1] == 2 else x[0, 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_that_are_not_finite_are_damage(tmp_path, layout, bad, monkeypatch):
    plain = foreign.values

    def broken(seed: int, *args: Any, **options: Any) -> Tensor:
        x = plain(seed, *args, **options)
        if seed in (1, 10):  # a shard's first site in every layout
            first(x)[2] = bad
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


def edited(path: Path, **facts: Any) -> None:
    said = {**json.loads(path.read_text()), **facts}
    path.write_text(json.dumps({name: fact for name, fact in said.items() if fact is not None}))


@pytest.mark.parametrize(
    ("name", "manifest", "facts", "sentence"),
    [
        (
            "activault",
            METADATA,
            {"bytes_per_file": None},
            "has no bytes_per_file: it was written before",
        ),
        (
            "activault",
            METADATA,
            {"dtype": "__import__('os')"},
            "has dtype=__import__.*: want torch.float32",
        ),
        ("activault", METADATA, {"shape": [4, 7, -16]}, r"has no shape \[n, T, D\]"),
        ("activault", METADATA, {"shape": [4, 7, 1 << 30]}, "is truncated: it has"),
        ("activault", METADATA, {"shape": [4, 7, 15]}, "is damaged: want states as torch.bfloat16"),
        ("bionemo", "metadata.json", {"hidden_dim": 17}, "want columns dim_0 to dim_16"),
        ("bionemo", "metadata.json", {"n_shards": 1 << 40}, "has n_shards=1099511627776: want"),
        ("bionemo", "metadata.json", {"n_shards": 4}, "shard_00003.parquet is missing"),
        ("bionemo", "metadata.json", {"n_samples": 85}, "has n_samples=85, and there are 84"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(tmp_path, name, manifest, facts, sentence):
    made = FORMATS[name](tmp_path / "s")
    edited(tmp_path / "s" / manifest, **facts)
    site = next(iter(made.sites))
    with pytest.raises(ValueError, match=sentence) as refused:
        width = replace(lm(), info=replace(lm().info, width=(facts.get("shape") or [WIDTH])[-1]))
        rows_of(source(tmp_path / "s", sources=(site,), targets=(site,), of=width), made)
    assert "\n" not in str(refused.value)


def test_two_hooks_of_other_text_are_refused(tmp_path):
    foreign.activault(tmp_path / "s")
    path = next((tmp_path / "s/models.layers.1.mlp.post").glob("00001-*"))
    saved = torch.load(path, weights_only=True)
    torch.save({**saved, "input_ids": saved["input_ids"] + 1}, path)
    stream = source(tmp_path / "s", sources=("mlp_in.1",), targets=("mlp_out.1",))
    with pytest.raises(ValueError, match=f"{path} is damaged: its input_ids are not those of"):
        for _ in range(8):
            stream.next_batch()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"symmetric": False}, "a zero point, whose shape it does not say"),
        (
            {"quantization": "int4"},
            "has int4 of torch.float32, compressed by zstd: want none or int8",
        ),
        ({"compression": "pickle"}, "compressed by pickle: want"),
        ({"original_dtype": "os.system"}, "has int8 of os.system"),
        ({"original_shape_in": [1 << 30, 1 << 10, 16]}, "shapes that do not fit"),
        ({"scale_shape_in": [1, 3, 1]}, "shapes that do not fit"),
        (
            {"original_shape_in": [30, 2, 16], "original_shape_out": [30, 2, 16]},
            "does not unpack to",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_compressed_split_that_says_nonsense_is_refused(tmp_path, said, sentence):
    made = foreign.clt_forge(tmp_path / "s", stored="int8", codec="zstd")
    path = one_file(tmp_path / "s")
    data = path.read_bytes()
    end = 4 + int.from_bytes(data[:4], "little")
    head = json.dumps({**json.loads(data[4:end]), **said}).encode()
    path.write_bytes(len(head).to_bytes(4, "little") + head + data[end:])
    with pytest.raises(ValueError, match=f"{path.name} .*{sentence}") as refused:
        rows_of(source(tmp_path / "s", sources=("mlp_norm.0",), targets=("mlp_norm.0",)), made)
    assert "\n" not in str(refused.value)


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
