# pyright: basic, reportIncompatibleMethodOverride=false, reportAssignmentType=false
"""A GPU that isn't there: tensors that say they are on `cuda:0`, and compute on the CPU.

What a machine without a GPU cannot notice otherwise: operands on two devices, which CUDA refuses and
a CPU never has; branches that ask `is_cuda`; and each time the host waits for the device (a number
read back, a boolean mask, a copy from ordinary memory), which costs nothing here and idle multiprocessors
there. What is launched is noted too. Triton's kernels run in its interpreter (TRITON_INTERPRET=1).
Nothing is said about speed, numerics or races: `make test-gpu` is for those.

    with pretend_gpu() as gpu:
        x = torch.randn(3, device="cuda")
        float(x.sum())
    assert gpu.waits == ["_local_scalar_dense at ..."]
    assert gpu.launches == ["sum", "_local_scalar_dense"]
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from dictlearn.ckpt import codec

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device("cuda:0")
CPU = torch.device("cpu")

# Operations whose result has a size, or is a number, that the host must know.
WAITING = {
    "_local_scalar_dense", "bincount", "equal", "is_nonzero", "item", "masked_select", "nonzero",
    "_unique2", "unique_consecutive", "unique_dim",
}  # fmt: skip
ALLOCATING = {"empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
# Which take a tensor of no dimensions from the CPU beside others on the device.
SCALARS_WELCOME = {
    "masked_fill",
    "masked_fill_",
    "where",
    "index_put",
    "index_put_",
    "fill_",
    "fill",
}


class OnGPU(torch.Tensor):
    """A CPU's tensor that says it is on a GPU."""

    there: torch.Tensor
    gpu: PretendGPU

    @staticmethod
    def __new__(cls, there: torch.Tensor, gpu: PretendGPU) -> OnGPU:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            there.size(),
            strides=there.stride(),
            storage_offset=there.storage_offset(),
            dtype=there.dtype,
            requires_grad=there.requires_grad,
        )
        made.there, made.gpu = there.detach(), gpu
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu = next(leaf.gpu for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnGPU))
        with gpu:
            return func(*args, **(kwargs or {}))

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @property
    def data(self) -> torch.Tensor:  # type: ignore[override]
        return OnGPU(self.there, self.gpu)

    @data.setter
    def data(self, value: OnGPU) -> None:
        assert value.shape == self.shape
        self.there = value.there

    def untyped_storage(self) -> Any:
        return self.there.untyped_storage()

    def data_ptr(self) -> int:
        return self.there.data_ptr()

    def get_device(self) -> int:
        return 0

    def record_stream(self, _: Any) -> None:
        pass

    def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
        self.gpu.wait("cpu")
        return _Down.apply(self)  # type: ignore[return-value]

    def to(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        given = (*args, kwargs.get("device"), kwargs.get("dtype"), kwargs.get("other"))
        like = [a for a in given if isinstance(a, torch.Tensor)]
        devices = [torch.device(a) for a in given if isinstance(a, str | torch.device)]
        devices += [a.device for a in like]
        dtypes = [a for a in given if isinstance(a, torch.dtype)] + [a.dtype for a in like]
        moved = self.cpu() if any(device.type == "cpu" for device in devices) else self
        options = {k: v for k, v in kwargs.items() if k in ("copy", "memory_format")}
        return torch.Tensor.to(moved, dtype=(*dtypes, self.dtype)[0], **options)

    def tolist(self) -> Any:
        self.gpu.wait("tolist")
        return self.there.tolist()

    def new_tensor(self, data: Any, **kwargs: Any) -> torch.Tensor:
        return torch.tensor(data, device=CUDA, **{"dtype": self.dtype, **kwargs})

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGPU({self.there!r})"

    __torch_function__ = torch._C._disabled_torch_function_impl


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: OnGPU) -> torch.Tensor:
        ctx.gpu = x.gpu
        return x.there.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> OnGPU:
        return OnGPU(g, ctx.gpu)


class PretendGPU(TorchDispatchMode):
    """The mode: what is made on `cuda`, or from what is there, is there."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self.launches: list[str] = []  # operations and kernels that run on the device
        self.quiet = False

    def wait(self, what: str) -> None:
        if not self.quiet:
            self.waits.append(f"{what} at {_where()}")

    def forget(self) -> None:
        self.waits.clear()
        self.launches.clear()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[1]
        if func.namespace == "dictlearn":
            from torch._library.custom_ops import OPDEFS

            with self:  # its own calls are of this device too
                return OPDEFS[f"dictlearn::{name}"]._init_fn(*args, **kwargs)
        if name in ("pin_memory", "_pin_memory"):
            return args[0].clone()
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        there = [t for t in tensors if isinstance(t, OnGPU)]
        here = [t for t in tensors if not isinstance(t, OnGPU)]
        asked = [d for d in tree_leaves((args, kwargs)) if isinstance(d, torch.device)]
        on_gpu = asked[0].type == "cuda" if asked else bool(there)
        # torch's own derivatives take the device from tensors, which to C++ are on the CPU.
        on_gpu = on_gpu or (bool(asked) and _in_backward())
        if name in ("_to_copy", "copy_", "to"):
            moved = (there and here) or (asked and on_gpu != bool(there))
            if moved and not (kwargs.get("non_blocking") or args[-1] is True):
                self.wait(f"{name} between devices")
        elif there and here:
            self._refuse_mix(func, name, args, here)
        if there:
            if not func.is_view and name not in ALLOCATING:
                self.launches.append(name)
            self._note_waits(func, name, args, kwargs)
        plain, options = tree_map_only(OnGPU, lambda t: t.there, (args, kwargs))
        plain, options = tree_map_only(
            torch.device, lambda d: CPU if d.type == "cuda" else d, (plain, options)
        )
        result = func(*plain, **options)
        if on_gpu and name not in ("_local_scalar_dense", "item", "equal", "is_nonzero"):
            result = tree_map_only(
                torch.Tensor, lambda t: t if isinstance(t, OnGPU) else OnGPU(t, self), result
            )
            if there:
                return return_and_correct_aliasing(func, args, kwargs, result)
        return result

    def _refuse_mix(self, func: Any, name: str, args: Any, here: list[torch.Tensor]) -> None:
        welcome = torch.Tag.pointwise in func.tags or name in SCALARS_WELCOME
        welcome = welcome or name.startswith("linalg_")  # which make tolerances of their own
        lists = any(isinstance(a, list | tuple) for a in args) and name not in INDEXING
        if welcome and not lists and all(t.ndim == 0 for t in here):
            return
        if name in INDEXING and isinstance(args[0], OnGPU):
            self.wait(f"{name} by indices from the CPU")
            return
        raise RuntimeError(
            f"{name}: expected all tensors to be on the same device, found cuda:0 and cpu "
            f"({[tuple(t.shape) for t in here]}) at {_where()}"
        )

    def _note_waits(self, func: Any, name: str, args: Any, kwargs: Any) -> None:
        masks = name in INDEXING and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        repeats = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITING or masks or repeats:
            self.wait(name)


def _in_backward() -> bool:
    """Whether it is a derivative of torch's that asks, not a function of somebody's. All that is
    differentiated here is taken to be on the GPU.
    """
    frame: Any = sys._getframe(1)
    while frame.f_code.co_filename == __file__ or "torch/_" in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code is torch.autograd.graph._engine_run_backward.__code__


def _where() -> str:
    """The line of ours that asked."""
    for frame in reversed(traceback.extract_stack()):
        path = Path(frame.filename)
        ours = path.is_relative_to(ROOT) and ".venv" not in path.parts
        if ours and path != Path(__file__):
            return f"{path.relative_to(ROOT)}:{frame.lineno}"
    return "?"


@contextmanager
def pretend_gpu() -> Iterator[PretendGPU]:
    """`device="cuda"` works within. Needs TRITON_INTERPRET=1 where kernels are launched."""
    from triton.runtime import interpreter

    gpu = PretendGPU()
    launch = interpreter.GridExecutor.__call__

    def launched(self: Any, *args: Any, **kwargs: Any) -> Any:
        for given in (*args, *kwargs.values()):
            if isinstance(given, torch.Tensor) and not isinstance(given, OnGPU):
                raise ValueError(
                    f"Pointer argument cannot be accessed from Triton (cpu tensor?) at {_where()}"
                )
        args, kwargs = tree_map_only(OnGPU, lambda t: t.there, (args, kwargs))
        gpu.launches.append(self.fn.__name__)
        with _disable_current_modes():
            return launch(self, *args, **kwargs)

    encode = codec._Encoder.encode

    def encoded(self: Any, value: Any, path: Any) -> Any:  # which takes tensors, no kinds of them
        return encode(self, value.cpu() if isinstance(value, OnGPU) else value, path)

    _device_constructors()  # torch remembers them once for all: not those that are patched here
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion
    with (
        patch.object(torch.__future__, overwrites.__name__, lambda: True),
        patch.multiple(torch.cuda, **_driver()),
        patch.object(torch.Tensor, "to", _numbered(torch.Tensor.to), create=True),
        patch.object(torch, "tensor", _elsewhere(torch.tensor)),
        patch.object(torch, "as_tensor", _elsewhere(torch.as_tensor)),
        patch.object(interpreter.GridExecutor, "__call__", launched),
        patch.object(codec._Encoder, "encode", encoded),
        gpu,
    ):
        yield gpu


def _driver() -> dict[str, Any]:
    """What torch.cuda asks the driver, answered; everything happens in order, so streams do nothing."""
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "no GPU at all",
        "get_device_capability": (9, 0),
        "mem_get_info": (2**37, 2**37),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "is_bf16_supported": True,
        "get_rng_state_all": [],
    }
    quiet = (
        "_lazy_init", "empty_cache", "manual_seed", "manual_seed_all", "reset_peak_memory_stats",
        "set_device", "set_rng_state_all", "synchronize",
    )  # fmt: skip
    made = {name: lambda *_, answer=answer, **__: answer for name, answer in answers.items()}
    made |= {name: lambda *_, **__: None for name in quiet}
    streams = {"Stream": _Stream, "current_stream": _Stream, "stream": lambda _: nullcontext()}
    return {**made, **streams}


class _Stream:
    def __init__(self, *_: Any, **__: Any):
        pass

    def wait_stream(self, other: _Stream) -> None:
        pass


def _numbered(to: Any) -> Any:
    """Tensor.to, which would ask the driver which device `cuda` is."""

    def moved(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if isinstance(self, OnGPU):
            return to(self, *args, **kwargs)
        for given in (*args, *kwargs.values()):
            if isinstance(given, OnGPU):
                return to(self, device=CUDA, dtype=given.dtype)
        args, kwargs = (
            tree_map(
                lambda a: CUDA if isinstance(a, str | torch.device) and "cuda" in str(a) else a,
                given,
            )
            for given in (args, kwargs)
        )
        return to(self, *args, **kwargs)

    return moved


def _elsewhere(make: Any) -> Any:
    """torch.tensor, which would go to the device by itself: made here, then moved."""

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if isinstance(data, OnGPU):
            return data.to(*filter(None, (device, kwargs.get("dtype"))))
        tensor = make(data, *args, **kwargs)
        return tensor if device is None else tensor.to(device)

    return made
