"""Figures on record: appended to benchmarks/results/, with machine, versions, date and parameters."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
# Instruction sets that figures on a CPU depend on, by Linux' names.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
PACKAGES = ("torch", "lightning", "sae-lens", "eai-sparsify", "transformer-lens", "dictlearn-lm")


def machine() -> dict[str, Any]:
    """The processors and what of them was used; nothing that names the computer or its owner."""
    cpuinfo = Path("/proc/cpuinfo")
    rows = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (row.partition(":") for row in rows)}
    flags = told.get("flags", "").split()
    found = {
        "cpu": told.get("model name") or platform.processor() or platform.machine(),
        "instructions": [name for name in INSTRUCTIONS if name in flags],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    return found | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def versions(packages: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    return {package: version(package) for package in packages}


def append(name: str, record: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Adds one record to <folder>/<name>.json, a list with the newest last."""
    path = folder / f"{name}.json"
    records = json.loads(path.read_text()) if path.exists() else []
    head = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "machine": machine()}
    folder.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".json.new")
    draft.write_text(json.dumps([*records, head | record], indent=1) + "\n")
    draft.replace(path)
    return path
