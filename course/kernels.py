"""Triton for the labs: `from course.kernels import tl, triton`, whatever the machine.

Without a CUDA GPU kernels are interpreted, on the CPU. Without Triton (it exists for Linux only) they can still be
defined, so that the rest of a notebook runs; launching one says what to do, and their tests are deferred.

An interpreted kernel that reads or writes outside the tensors of its launch is stopped with an error: a wrong mask often
leaves the result right and the memory not.
"""
from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import torch

from course.device import default_device, prepare_triton

MISSING = "Triton is not installed here (it exists for Linux only): use WSL or Colab."

prepare_triton()
try:
    import triton
    import triton.language as tl
except ImportError:
    class _Absent:
        """Stands in for `triton` and `tl`: enough to read a kernel's definition, no more."""
        constexpr = int

        def jit(self, kernel: Callable) -> _Absent:
            return self

        def __getitem__(self, grid) -> Callable:
            return self._refuse

        def __getattr__(self, name: str):
            if name.startswith("__"):
                raise AttributeError(name)
            self._refuse()

        def _refuse(self, *args, **kwargs):
            raise RuntimeError(MISSING)

    triton = tl = _Absent()


def _watch_interpreter() -> None:
    """Let interpreted loads and stores touch the tensors of their launch only."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder
    inside: list[tuple[int, int]] = []      # addresses of each tensor of the launch: first byte, one past the last

    def remember(init_args: Callable) -> Callable:
        def wrapped(self, args, kwargs):
            found = init_args(self, args, kwargs)
            inside[:] = [_extent(a) for a in (*found[0], *found[1].values()) if isinstance(a, torch.Tensor)]
            return found
        return wrapped

    def guard(access: Callable, what: str, find_mask: Callable) -> Callable:
        def wrapped(self, pointers, *rest):
            size = pointers.get_element_ty().primitive_bitwidth // 8
            address = pointers.data[find_mask(*rest).data.astype(bool)]
            outside = np.ones(address.shape, bool)
            for first, end in inside:
                outside &= (address < first) | (address + size > end)
            if outside.any():
                raise IndexError(f"this kernel {what} outside its tensors ({outside.sum()} of {outside.size} places in one access): "
                                 "a mask is missing or lets too much through. A GPU would touch foreign memory or stop")
            return access(self, pointers, *rest)
        return wrapped

    GridExecutor._init_args_hst = remember(GridExecutor._init_args_hst)
    InterpreterBuilder.create_masked_load = guard(InterpreterBuilder.create_masked_load, "reads", lambda mask, *_: mask)
    InterpreterBuilder.create_masked_store = guard(InterpreterBuilder.create_masked_store, "writes", lambda value, mask, *_: mask)


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


if os.environ.get("TRITON_INTERPRET") == "1" and hasattr(triton, "__version__"):
    _watch_interpreter()


def ready(*tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors where kernels run, contiguous; bfloat16 becomes float32 where `tl.dot` cannot multiply it.

    That is so in the interpreter, which takes its bits for integers, and on GPUs before compute capability 8.0.
    """
    device = default_device()
    bf16 = device.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0)
    tensors = [t.float() if t.dtype == torch.bfloat16 and not bf16 else t for t in tensors]
    return [t.to(device).contiguous() for t in tensors]


def without_triton() -> str | None:
    """For `requires=` of a kernel's tests: None where kernels can run, compiled or interpreted, else why not."""
    return None if hasattr(triton, "__version__") else MISSING


def without_gpu() -> str | None:
    """For `requires=` of a kernel's speed target: an interpreted kernel says nothing about speed."""
    return without_triton() or (None if torch.cuda.is_available() else
                                "there is no CUDA GPU here, and the interpreter's speed says nothing.")
