"""Every kernel compiles for the GPUs we name, offline and without spilling registers."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dictlearn_kernels
import pytest
import torch
from dictlearn_kernels.dispatch import has_triton
from dictlearn_kernels.shipped import Variant

ARCHITECTURES = {80: "A100", 90: "H100", 100: "B200"}  # compute capability: the part it is known by


def modules() -> Iterator[str]:
    """The operations that have kernels."""
    for op in pkgutil.iter_modules(dictlearn_kernels.__path__):
        if op.ispkg and (Path(dictlearn_kernels.__path__[0]) / op.name / "triton.py").exists():
            yield op.name


def specialised(variant: Variant) -> list[str]:
    """The integers of which a launch tells the compiler whether 16 divides them."""
    return [
        p.name
        for p in variant.kernel.params
        if variant.signature.get(p.name, "*")[0] == "i"
        and not (p.do_not_specialize or p.do_not_specialize_on_alignment)
    ]


def cases() -> Iterator[Any]:
    assert os.environ.get("TRITON_INTERPRET", "0") != "1", (
        "tests/kernels/test_compile.py compiles kernels, which TRITON_INTERPRET=1 replaces by "
        "functions of Python; unset it, and run tests/kernels/interpreted in a process of its own"
    )
    if not has_triton():
        return
    for op in modules():
        for variant in importlib.import_module(f"dictlearn_kernels.{op}.triton").shipped():
            dtypes = dict.fromkeys(t[1:] for t in variant.signature.values() if t[0] == "*")
            constants = (f"{name}={value}" for name, value in variant.constants.items())
            said = "-".join([op, variant.kernel.__name__, *dtypes, *constants])
            for aligned in (True, False) if specialised(variant) else (True,):
                for arch in ARCHITECTURES:
                    sizes = "multiples_of_16" if aligned else "any_sizes"
                    yield pytest.param(variant, aligned, arch, id=f"{said}-{sizes}-sm_{arch}")


def resources(variant: Variant, aligned: bool, arch: int, folder: Path) -> dict[str, int]:
    """What ptxas gave the kernel: registers (REG), bytes of stack (STACK), shared memory, ..."""
    import triton
    import triton.backends.nvidia
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = list(variant.kernel.arg_names)
    assert sorted([*variant.signature, *variant.constants]) == sorted(names)
    multiples = [name for name, kind in variant.signature.items() if kind[0] == "*"]
    multiples += specialised(variant) if aligned else []
    source = ASTSource(
        fn=variant.kernel,
        signature={name: variant.signature.get(name, "constexpr") for name in names},
        constexprs=variant.constants,
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in multiples},
    )
    options: dict[str, int] = {"num_warps": variant.num_warps, "num_stages": variant.num_stages}
    if variant.maxnreg is not None:
        options["maxnreg"] = variant.maxnreg
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    said = subprocess.run([tool, "-res-usage", cubin], capture_output=True, text=True, check=True)
    return {name: int(n) for name, n in re.findall(r"(\w+)(?:\[0\])?:(\d+)", said.stdout)}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize(("variant", "aligned", "arch"), list(cases()))
def test_compiles_without_spilling(variant, aligned, arch, tmp_path):
    used = resources(variant, aligned, arch, tmp_path)
    # A kernel without arrays of its own uses the stack for nothing but spilled registers.
    assert (used["STACK"], used["LOCAL"]) == (0, 0), used
    assert not torch.cuda.is_initialized()


@pytest.mark.parametrize("arch", [90] if has_triton() else [])
def test_spilling_would_be_seen(arch, tmp_path):
    from tests.kernels.spilling import spilling

    signature = {"a_ptr": "*fp32", "o_ptr": "*fp32", "n": "i32"}
    variant = Variant(spilling, signature, {"SIZE": 4096}, num_warps=1)
    assert resources(variant, True, arch, tmp_path)["STACK"] > 0
