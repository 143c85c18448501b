"""Work, counted. Time is noisy and differs from machine to machine; work is neither.

    work.count(function, *args)     tensor operations, the bytes that they move, and multiply-adds of one call

For teaching: what is counted here happens in the student's own process.
"""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from course.device import prepare_triton

prepare_triton()
# torch's flop counter imports Triton.
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402
from torch.utils._pytree import tree_leaves  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402


@dataclass(frozen=True)
class Work:
    """`bytes` counts each tensor that an operation reads and each that it writes: its way to the memory and back, if it
    does not stay in a cache. `multiply_adds` are those of matrix products, convolutions and attention."""
    operations: int
    bytes: int
    multiply_adds: int


def count(function: Callable, *args: Any, **kwargs: Any) -> Work:
    """The work of `function(*args, **kwargs)`. What only looks at memory in another way (view, transpose) is free."""
    counter = _Counter()
    with FlopCounterMode(display=False) as flops, counter:
        function(*args, **kwargs)
    return Work(counter.operations, counter.bytes, flops.get_total_flops() // 2)


class _Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.operations = self.bytes = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        # Making an empty tensor moves nothing, nor does what torch calls an unsafe view.
        if not operation.is_view and operation.overloadpacket.__name__ not in ("empty", "empty_like", "_unsafe_view"):
            self.operations += 1
            self.bytes += sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor))
        return result
