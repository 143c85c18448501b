"""Triton for the labs: `from course.kernels import tl, triton`, whatever the machine.

Without a CUDA GPU kernels are interpreted, on the CPU. Without Triton (it exists for Linux only) they can still be
defined, so that the rest of a notebook runs; launching one says what to do, and their tests are deferred.
"""
from __future__ import annotations

from collections.abc import Callable

import torch

from course.device import prepare_triton

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


def without_triton() -> str | None:
    """For `requires=` of a kernel's tests: None where kernels can run, compiled or interpreted, else why not."""
    return None if hasattr(triton, "__version__") else MISSING


def without_gpu() -> str | None:
    """For `requires=` of a kernel's speed target: an interpreted kernel says nothing about speed."""
    return without_triton() or (None if torch.cuda.is_available() else
                                "there is no CUDA GPU here, and the interpreter's speed says nothing.")
