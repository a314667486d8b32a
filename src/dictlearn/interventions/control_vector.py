"""Concept vectors as a GGUF control vector, which llama.cpp reads with --control-vector.

The file has the architecture "controlvector", the keys controlvector.model_hint and
controlvector.layer_count, and a float32 tensor direction.<l> for each layer. llama.cpp adds it to what
block l gives to the next block, counted from 0: resid_post.l, resid_pre.(l+1), or mlp_out.l, which is a
summand of it. It has no place for block 0, and refuses a file that names it (src/llama-adapter.cpp,
common_control_vector_load_one).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor

from dictlearn.disk.replace import check_file_replaceable
from dictlearn.disk.whole import replacing

ARCHITECTURE = "controlvector"
SITE = re.compile(r"(resid_pre|resid_post|mlp_out)\.([0-9]{1,9})")


def layers(vectors: Mapping[str, Tensor]) -> dict[int, Tensor]:
    """llama.cpp's layer -> the vector [D] there; one of block 0 is left out if there are others.

    Raises:
        ValueError: a site is no end of a block, two are the same place, or no layer is left.
    """
    found: dict[int, Tensor] = {}
    for site, vector_D in vectors.items():
        match = SITE.fullmatch(site)
        if match is None:
            raise ValueError(
                f"gguf: {site} is no end of a block; want resid_post.L, resid_pre.L or mlp_out.L"
            )
        layer = int(match[2]) - (match[1] == "resid_pre")
        if layer in found:
            raise ValueError(f"gguf: {site} is the place of another of these vectors")
        found[layer] = vector_D
    kept = {layer: vector_D for layer, vector_D in sorted(found.items()) if layer > 0}
    if not kept:
        raise ValueError(
            f"gguf: {', '.join(vectors)}: llama.cpp adds nothing after block 0 or before it; want a "
            "vector at resid_post.1 or later"
        )
    return kept


def check_gguf(path: Path, overwrite: bool) -> None:
    """Raises before any work if gguf is not installed, or the file is there and no control vector.

    Raises:
        ValueError: gguf is missing.
        SaveError: something else lies at `path`.
    """
    _library()
    check_file_replaceable(path, _is_control_vector, overwrite)


def write_gguf(path: Path, vectors: Mapping[str, Tensor], family: str) -> list[int]:
    """Writes vectors [D] by site whole or not at all; the layers that the file has.

    Raises:
        ValueError: as `layers` does, or gguf is not installed.
        SaveError: the disk is full, broken or read-only.
    """
    gguf, kept = _library(), layers(vectors)
    with replacing(path) as partial:
        writer = gguf.GGUFWriter(str(partial), ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", family)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(kept))
        for layer, vector_D in kept.items():
            writer.add_tensor(f"direction.{layer}", vector_D.float().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return list(kept)


def _is_control_vector(data: bytes) -> bool:
    return data[:4] == b"GGUF" and ARCHITECTURE.encode() in data[:256]


def _library() -> Any:
    try:
        return import_module("gguf")
    except ImportError:
        raise ValueError(
            "gguf: needs the package of that name: pip install 'dictlearn-lm[gguf]'"
        ) from None
