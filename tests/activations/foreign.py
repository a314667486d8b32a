"""Small stores as other tools write them: files made here by hand, and what is in them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.activations.made import VOCABULARY
from tests.sources.test_live import BOS, CONTEXT, FIRST_WORD, WIDTH

SHARDS, WINDOWS = 3, 4  # and windows of a shard


class Made(NamedTuple):
    """What a store holds, shard by shard."""

    sites: dict[str, list[Tensor]]  # by our names, [N, D]
    tokens: list[Tensor] | None  # [N]


def values(seed: int, width: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, width, generator=generator).to(dtype)


def windows(shard: int, vocabulary: int = VOCABULARY) -> Tensor:
    """Token ids [WINDOWS, CONTEXT], each window with BOS at its beginning."""
    generator = torch.Generator().manual_seed(100 + shard)
    shape = (WINDOWS, CONTEXT)
    tokens = torch.randint(FIRST_WORD, vocabulary, shape, generator=generator)
    tokens[:, 0] = BOS
    return tokens


def llamascopium(
    folder: Path, width: int = WIDTH, ending: str = "safetensors", flat: bool = False
) -> Made:
    """Two hooks in bfloat16; windows whose BOS the mask leaves out, or rows of single tokens."""
    hooks = {"resid_post.1": "blocks.1.hook_resid_post", "mlp_out.1": "blocks.1.hook_mlp_out"}
    made = Made({site: [] for site in hooks}, [])
    assert made.tokens is not None
    for shard in range(SHARDS):
        tokens = windows(shard)
        ones, mask = torch.ones_like(tokens), torch.ones_like(tokens)
        mask[:, 0] = 0
        for n, (site, hook) in enumerate(hooks.items()):
            x = values(10 * shard + n, width, WINDOWS, CONTEXT, dtype=torch.bfloat16)
            tensors = {"activation": x, "tokens": tokens, "mask": mask, "attention_mask": ones}
            if flat:
                tensors = {name: t.flatten(0, 1).clone() for name, t in tensors.items()}
            path = folder / hook / f"chunk-{shard:08d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if ending == "pt":
                torch.save({**tensors, "meta": [{"model_name": "tiny"}]}, path)
            else:
                save_file(tensors, path)
            path.with_suffix(".meta.json").write_text(json.dumps([{"model_name": "org/Tiny"}]))
            made.sites[site].append(x.flatten(0, 1)[mask.flatten() != 0])
        made.tokens.append(tokens[mask != 0])
    return made


def saelens(folder: Path, width: int = WIDTH, dtype: str = "float32") -> Made:
    """A hook's windows in record batches of 3 and 1, without the library that writes them."""
    folder.mkdir(parents=True)
    hook = "blocks.1.hook_resid_post"
    kind = {"float32": torch.float32, "float16": torch.float16}[dtype]
    features = {
        hook: {"shape": [CONTEXT, width], "dtype": dtype, "_type": "Array2D"},
        "token_ids": {
            "feature": {"dtype": "int32", "_type": "Value"},
            "length": CONTEXT,
            "_type": "List",
        },
    }
    names = [f"data-{n:05d}-of-{SHARDS:05d}.arrow" for n in range(SHARDS)]
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "0"}
    (folder / "state.json").write_text(json.dumps(state))
    made = Made({"resid_post.1": []}, [])
    assert made.tokens is not None
    for shard, name in enumerate(names):
        x, tokens = values(shard, width, WINDOWS, CONTEXT, dtype=kind), windows(shard)
        write_arrow(folder / name, {hook: x, "token_ids": tokens.int()}, [3, 1])
        made.sites["resid_post.1"].append(x[tokens != BOS])
        made.tokens.append(tokens[tokens != BOS])
    return made


def write_arrow(path: Path, columns: dict[str, Tensor], batches: list[int]) -> None:
    """Columns of nested lists in Arrow's stream format, in batches of so many rows."""
    arrays = {name: nested(column) for name, column in columns.items()}
    schema = pa.schema([(name, array.type) for name, array in arrays.items()])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, schema) as stream:
        start = 0
        for rows in batches:
            parts = [array.slice(start, rows) for array in arrays.values()]
            stream.write_batch(pa.record_batch(parts, schema=schema))
            start += rows


def nested(x: Tensor) -> pa.Array:
    """Lists of lists of one length each; of a matrix, lists whose type says it."""
    if x.dim() == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(x.flatten().numpy()), x.shape[1])
    array = pa.array(x.flatten().numpy())
    for size in reversed(x.shape[1:]):
        offsets = pa.array(range(0, len(array) + 1, size), type=pa.int32())
        array = pa.ListArray.from_arrays(offsets, array)
    return array


def clt_forge(folder: Path, width: int = WIDTH, stored: str = "bfloat16", codec: str = "") -> Made:
    """All layers' inputs and outputs of two layers, as they are or in one of the compressed forms."""
    dtype = getattr(torch, stored) if stored in ("bfloat16", "float16") else torch.float32
    made = Made({f"{kind}.{layer}": [] for kind in ("mlp_norm", "mlp_out") for layer in (0, 1)}, [])
    path = folder / f"ctx_{CONTEXT - 1}"
    path.mkdir(parents=True)
    assert made.tokens is not None
    for split in range(SHARDS):
        tokens = windows(split)[:, 1:].flatten()  # BOS has no row
        both = {
            name: values(10 * split + n, width, len(tokens), 2, dtype=dtype)
            for n, name in enumerate(("act_in", "act_out"))
        }
        file = path / f"activations_ctx_{CONTEXT - 1}_split_{split}"
        if codec:
            both = write_compressed(file.with_suffix(".bin"), both, tokens, stored, codec)
        else:
            save_file({**both, "tokens": tokens}, file.with_suffix(".safetensors"))
        for kind, x in zip(("mlp_norm", "mlp_out"), both.values(), strict=True):
            for layer in (0, 1):
                made.sites[f"{kind}.{layer}"].append(x[:, layer])
        made.tokens.append(tokens)
    return made


def write_compressed(
    path: Path, both: dict[str, Tensor], tokens: Tensor, stored: str, codec: str
) -> dict[str, Tensor]:
    """A .bin of CLT-Forge; returns what its numbers stand for."""
    entries: dict[str, bytes] = {}
    meant: dict[str, Tensor] = {}
    said: dict[str, object] = {"quantization": stored, "compression": codec, "symmetric": True}
    said |= {"original_dtype": "torch.float32", "has_tokens": True, "compression_level": 3}
    for name, x in both.items():
        scale = x.abs().amax((0, 2), keepdim=True) / 127 if stored == "int8" else torch.ones(1)
        packed = (x / scale).round().to(torch.int8) if stored == "int8" else x.half()
        meant[name] = packed.float() * scale
        entries[f"{name}_data"] = packed.numpy().tobytes()
        entries[f"{name}_scale"] = scale.flatten().numpy().tobytes()
        end = name.removeprefix("act_")
        said |= {f"original_shape_{end}": list(x.shape), f"scale_shape_{end}": list(scale.shape)}
    entries["tokens"] = tokens.numpy().tobytes()
    head = json.dumps(said).encode()
    data = struct.pack("I", len(head)) + head + struct.pack("I", len(entries))
    for name, raw in entries.items():
        raw = raw if codec == "none" else pa.Codec(codec).compress(raw, asbytes=True)
        data += struct.pack("I", len(name)) + name.encode() + struct.pack("Q", len(raw)) + raw
    path.write_bytes(data)
    return meant


def bionemo(folder: Path, width: int = WIDTH, dtype: torch.dtype = torch.float32) -> Made:
    """Shards of a column for each dimension; the last is shorter."""
    folder.mkdir(parents=True)
    made = Made({"resid_post.1": []}, None)
    for shard in range(SHARDS):
        x = values(shard, width, 20 if shard == SHARDS - 1 else 32, dtype=dtype)
        columns = {f"dim_{i}": x[:, i].numpy() for i in range(width)}
        pq.write_table(pa.table(columns), folder / f"shard_{shard:05d}.parquet")
        made.sites["resid_post.1"].append(x)
    sizes = {"n_samples": 84, "hidden_dim": width, "n_shards": SHARDS, "shard_size": 32}
    told = {"model_name": "some/tiny", "layer": 1, "n_sequences": 9}
    (folder / "metadata.json").write_text(json.dumps({**sizes, **told}))
    return made


def activault(folder: Path, width: int = WIDTH) -> Made:
    """Three hooks in bfloat16, files joined by their uuid; statistics with the std that it writes."""
    hooks = {
        "mlp_in.1": "models.layers.1.mlp.pre",
        "mlp_out.1": "models.layers.1.mlp.post",
        "resid_pre.1": "models.layers.1.self_attn.pre",
    }
    made = Made({site: [] for site in hooks}, [])
    assert made.tokens is not None
    for group in range(SHARDS):
        tokens = windows(group)[:, 1:].clone()  # it cuts specials out
        for n, (site, hook) in enumerate(hooks.items()):
            x = values(10 * group + n, width, *tokens.shape, dtype=torch.bfloat16)
            path = folder / hook / f"{group:05d}-uuid--{group + n}_0.saved.pt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"states": x, "input_ids": tokens, "tensor_bytes": 7}, path)
            shape = {"shape": list(x.shape), "input_ids_shape": list(tokens.shape)}
            said = {"dtype": "torch.bfloat16", "batch_size": WINDOWS, "d_in": width}
            size = {"bytes_per_file": path.stat().st_size}
            (path.parent / "metadata.json").write_text(json.dumps(said | shape | size))
            wrong = {
                "mean": [0.0] * width,
                "std": [0.125] * width,
                "norm": 4.0,
                "M2": [1.0] * width,
            }
            (path.parent / "statistics.json").write_text(json.dumps(wrong))
            made.sites[site].append(x.flatten(0, 1))
        made.tokens.append(tokens.flatten())
    config = {"run_name": "x", "transformer_config": {"model_name": "some/tiny"}}
    (folder / "cfg.json").write_text(json.dumps(config))
    return made


FORMATS: dict[str, Callable[..., Made]] = {
    "activault": activault,
    "bionemo": bionemo,
    "clt_forge": clt_forge,
    "llamascopium": llamascopium,
    "saelens": saelens,
}
LAYOUTS: dict[str, Callable[..., Made]] = {
    **FORMATS,
    "llamascopium, rows": partial(llamascopium, flat=True),
    "llamascopium, torch.save": partial(llamascopium, ending="pt"),
    "bionemo, float64": partial(bionemo, dtype=torch.float64),
    "clt_forge, zstd": partial(clt_forge, stored="int8", codec="zstd"),
    "clt_forge, lz4": partial(clt_forge, stored="none", codec="lz4"),
    "clt_forge, packed": partial(clt_forge, stored="int8", codec="none"),
    "saelens, float16": partial(saelens, dtype="float16"),
}
# What a user has to say, where a name doesn't say what it stands for.
NAMES = {
    "activault": {"resid_pre.1": "models.layers.1.self_attn.pre"},
    "bionemo": {"resid_post.1": "activations"},
}
