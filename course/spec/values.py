"""The values that an exercise may take and return: tensors, numbers, strings, None, and dicts, lists, tuples of these.

Everything that crosses from the judge to the student's code and back is such a value. Nothing here evaluates or
unpickles anything, so a value from an untrusted process is safe to take apart.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Value = Any
MAX_DEPTH = 16
SCALARS = (bool, int, float, str, type(None))
SEQUENCES = (list, tuple, torch.Size)   # w.shape is the natural thing to return


class NotAValue(TypeError):
    """Something that no exercise may return; the message says where it was found."""


def walk(value: Value, where: str = "") -> Iterator[tuple[str, Value]]:
    """Every leaf with its path, for example `("[1]['step']", 3)`. Raises NotAValue for anything not allowed."""
    stack = [(where, value, 0)]
    while stack:
        where, value, depth = stack.pop()
        if depth > MAX_DEPTH:
            raise NotAValue(f"a value nested more than {MAX_DEPTH} deep at {where[:60]}")
        if type(value) is Tensor or type(value) is torch.nn.Parameter or type(value) in SCALARS:
            yield where, value
        elif type(value) is dict:
            for key in value:
                if type(key) not in (str, int):
                    raise NotAValue(f"a dict key of type {type(key).__name__}{at(where)}; keys are strings or ints")
            stack.extend((f"{where}[{key!r}]", item, depth + 1) for key, item in reversed(value.items()))
        elif type(value) in SEQUENCES:
            stack.extend((f"{where}[{i}]", item, depth + 1) for i, item in reversed(list(enumerate(value))))
        else:
            raise NotAValue(f"an object of type {type(value).__name__}{at(where)}; "
                            "tensors, numbers, strings, and dicts, lists, tuples of these are understood")


def at(where: str) -> str:
    return f" at {where}" if where else ""


def rebuild(value: Value, leaf: Callable[[Value], Value]) -> Value:
    """The same nesting with `leaf` applied to everything that is not a dict, list or tuple; a torch.Size becomes a tuple."""
    if type(value) is dict:
        return {key: rebuild(item, leaf) for key, item in value.items()}
    if type(value) in SEQUENCES:
        return (list if type(value) is list else tuple)(rebuild(item, leaf) for item in value)
    return leaf(value)


def clone(value: Value) -> Value:
    """A copy that shares no memory with `value` and carries no autograd graph. Callables pass through."""
    return rebuild(value, lambda leaf: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf)


# ---------------------------------------------------------------- skeleton and tensors

def pack(value: Value, callback: Callable[[Callable], int] | None = None) -> tuple[Any, list[Tensor]]:
    """Split a value into a JSON skeleton and the tensors it refers to by index.

    Tensors become `{"t": i}`, dicts `{"d": [[key, item], ...]}`, lists `{"l": [...]}`, tuples `{"u": [...]}`;
    scalars stand for themselves. A callable becomes `{"f": callback(callable)}` if `callback` is given.
    """
    tensors: list[Tensor] = []

    def skeleton(value: Value, depth: int) -> Any:
        if depth > MAX_DEPTH:
            raise NotAValue(f"a value nested more than {MAX_DEPTH} deep")
        if type(value) in (Tensor, torch.nn.Parameter):
            tensors.append(value)
            return {"t": len(tensors) - 1}
        if type(value) in SCALARS:
            return value
        if type(value) is dict:
            return {"d": [[key, skeleton(item, depth + 1)] for key, item in value.items()]}
        if type(value) is list:
            return {"l": [skeleton(item, depth + 1) for item in value]}
        if type(value) is tuple:
            return {"u": [skeleton(item, depth + 1) for item in value]}
        if callback is not None and callable(value):
            return {"f": callback(value)}
        raise NotAValue(f"an object of type {type(value).__name__}")

    try:
        return skeleton(value, 0), tensors
    finally:
        skeleton = None     # it refers to itself, and would keep the tensors until the garbage collector comes


def unpack(skeleton: Any, tensors: list[Tensor], callback: Callable[[int], Callable] | None = None) -> Value:
    """The inverse of `pack`. Raises NotAValue for a skeleton that `pack` could not have made."""
    def value(node: Any, depth: int) -> Value:
        if depth > MAX_DEPTH:
            raise NotAValue(f"a value nested more than {MAX_DEPTH} deep")
        if type(node) in SCALARS:
            return node
        if type(node) is not dict or len(node) != 1:
            raise NotAValue("a malformed value")
        (kind, body), = node.items()
        if kind == "t" and type(body) is int and 0 <= body < len(tensors):
            return tensors[body]
        if kind == "f" and type(body) is int and callback is not None:
            return callback(body)
        if type(body) is not list:
            raise NotAValue("a malformed value")
        if kind == "l":
            return [value(item, depth + 1) for item in body]
        if kind == "u":
            return tuple(value(item, depth + 1) for item in body)
        if kind == "d":
            if not all(type(pair) is list and len(pair) == 2 and type(pair[0]) in (str, int) for pair in body):
                raise NotAValue("a malformed dict")
            return {key: value(item, depth + 1) for key, item in body}
        raise NotAValue("a malformed value")

    try:
        return value(skeleton, 0)
    finally:
        value = None    # as in pack


# ---------------------------------------------------------------- comparing

@dataclass(frozen=True)
class Difference:
    """Where two values first differ, in words short enough for a message."""
    where: str      # path of the leaf and, in a tensor, the index: "[0][2, 1]"
    expected: str
    got: str
    why: str        # "" for plain numbers that differ


def first_difference(expected: Value, got: Value, rtol: float = 1e-5, atol: float = 1e-8) -> Difference | None:
    """The first place where `got` is not `expected`, or None. NaN equals NaN; dtypes and shapes must agree.

    Tensors agree where |got - expected| <= atol + rtol * |expected|.
    """
    return _difference(expected, got, rtol, atol, "")


def _difference(expected: Value, got: Value, rtol: float, atol: float, where: str) -> Difference | None:
    if isinstance(expected, Tensor):
        return _tensor_difference(expected, got, rtol, atol, where)
    if type(expected) in (list, tuple):
        if type(got) not in (list, tuple):
            return Difference(where, f"a {type(expected).__name__} of {len(expected)}", brief(got), "the type differs")
        if len(got) != len(expected):
            return Difference(where, f"{len(expected)} items", f"{len(got)} items", "the number of items differs")
        pairs = ((f"{where}[{i}]", a, b) for i, (a, b) in enumerate(zip(expected, got)))
    elif type(expected) is dict:
        if type(got) is not dict:
            return Difference(where, f"a dict with {sorted(map(str, expected))}", brief(got), "the type differs")
        if set(got) != set(expected):
            return Difference(where, f"keys {sorted(map(str, expected))}", f"keys {sorted(map(str, got))}", "the keys differ")
        pairs = ((f"{where}[{key!r}]", expected[key], got[key]) for key in expected)
    else:
        return None if _same_scalar(expected, got, rtol, atol) else Difference(where, brief(expected), brief(got), "")
    for inner, a, b in pairs:
        if (difference := _difference(a, b, rtol, atol, inner)) is not None:
            return difference
    return None


def _same_scalar(expected: Value, got: Value, rtol: float, atol: float) -> bool:
    if isinstance(got, Tensor) and got.numel() == 1 and type(expected) in (int, float, bool):
        got = got.item()
    if type(expected) is float and type(got) in (int, float):
        return (math.isnan(expected) and math.isnan(got)) or expected == got or (
            math.isfinite(expected) and abs(got - expected) <= atol + rtol * abs(expected))
    if type(expected) in (int, bool) and type(got) in (int, float, bool):
        return expected == got
    return type(expected) is type(got) and expected == got


def _tensor_difference(expected: Tensor, got: Value, rtol: float, atol: float, where: str) -> Difference | None:
    if expected.ndim == 0 and type(got) in (int, float, bool):
        got = torch.tensor(got, dtype=expected.dtype)
    if not isinstance(got, Tensor):
        return Difference(where, brief(expected), brief(got), "a tensor is wanted here")
    if got.shape != expected.shape:
        return Difference(where, f"shape {list(expected.shape)}", f"shape {list(got.shape)}", "the shape differs")
    if got.dtype != expected.dtype:
        return Difference(where, f"{expected.dtype}", f"{got.dtype}", "the dtype differs")
    a, b = expected.detach().cpu(), got.detach().cpu()
    if a.is_floating_point():
        a, b = a.double(), b.double()
        same = ((a - b).abs() <= atol + rtol * a.abs()) & a.isfinite() | (a == b) | (a.isnan() & b.isnan())
    else:
        same = a == b
    if bool(same.all()):
        return None
    index = (~same).nonzero()[0].tolist()
    wrong = int((~same).sum())
    why = f"{wrong} of {same.numel()} numbers differ" if same.numel() > 1 else ""
    return Difference(where + (str(index) if index else ""), number(a[tuple(index)].item()), number(b[tuple(index)].item()), why)


def number(x: float) -> str:
    return f"{x:.6g}" if isinstance(x, float) else str(x)


def brief(value: Value, limit: int = 60) -> str:
    """One short line for a value. Never calls a `__repr__` that is not Python's or torch's own."""
    if isinstance(value, Tensor):
        if value.numel() <= 4:
            text = str([number(x) for x in value.detach().flatten().tolist()]).replace("'", "")
            return text if value.ndim == 1 else f"{text} of shape {list(value.shape)}" if value.ndim else text[1:-1]
        return f"a tensor of shape {list(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    if type(value) is float:
        return number(value)
    if type(value) is str:
        return repr(value[:limit])
    if type(value) in SCALARS:
        return str(value)[:limit]
    if type(value) is dict:
        text = "{" + ", ".join(f"{_name(key)}: {brief(item)}" for key, item in list(value.items())[:4]) + ("}" if len(value) <= 4 else ", ...}")
    elif type(value) in (list, tuple):
        text = "[" + ", ".join(brief(item) for item in value[:4]) + ("]" if len(value) <= 4 else f", ... {len(value)} items]")
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else f"a {type(value).__name__} of {len(value)} items"


def _name(key: str | int) -> str:
    return str(key) if str(key).isprintable() else repr(key)
