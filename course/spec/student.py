"""The student's functions, as a test sees them, wherever they run.

A test writes `student.adam_step(param, grad, state, lr=0.1)`. Whether the function lives in this process (the
student's notebook) or in a sandbox (grading) is the transport's business; what the test sees is the same:
arguments are copies, results are copies, and an argument that the function changed is noticed.
"""
from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, equal

from course.spec.values import NotAValue, Value, brief, clone, first_difference, rebuild, walk

if TYPE_CHECKING:
    from course.cluster import Cluster, Exchange, Run


class StudentError(Exception):
    """The student's function gave no usable answer. `status` is "failed", "error" or "timeout".

    `own_words`: the message was written where the student's code runs, and may hold anything that it has seen.
    """

    def __init__(self, message: str, status: str = "error", own_words: bool = False):
        super().__init__(message)
        self.status, self.own_words = status, own_words


class NotWritten(StudentError):
    """The function still raises NotImplementedError, or there is none of that name."""

    def __init__(self, function: str, why: str = "is not written yet"):
        super().__init__(f"{function} {why}.", "failed")


class ArgumentChanged(StudentError):
    """The function changed one of its arguments although its docstring does not say so."""

    def __init__(self, function: str, argument: str, before: Value, where: str):
        if type(before) is dict:
            cure = ("the dict that you were given is different after the call. Do not write into it; "
                    "build a new dict and return that.")
        else:
            cure = ("the caller's tensor is different after the call. Compute new tensors instead of using in-place "
                    "operations (+=, mul_, copy_) on what you were given.")
        super().__init__(f"{function} changed its argument {argument}{' at ' + where if where else ''}: {cure}", "failed")


@dataclass
class Call:
    """One call of a student's function. With `cotangent`, the gradients of sum(result * cotangent) are wanted too."""
    function: str
    args: tuple
    kwargs: dict[str, Value] = field(default_factory=dict)
    cotangent: Value = None

    def describe(self) -> str:
        parts = [brief(a) if not callable(a) else "a function" for a in self.args]
        parts += [f"{k}={brief(v) if not callable(v) else 'a function'}" for k, v in self.kwargs.items()]
        return f"{self.function}({', '.join(parts)})"


@dataclass
class Outcome:
    """What came back: the result, the arguments as they were after the call, and the gradients if asked for.

    `args` and `kwargs` are the very objects of the call where the function left them as they were.

    `gradients` has one entry for each floating-point tensor among the positional arguments, in order of
    appearance; None where the result does not depend on it.
    """
    value: Value
    args: tuple
    kwargs: dict[str, Value]
    gradients: list[Tensor | None] | None = None


class Transport(Protocol):
    def begin(self, exercise: str) -> None:
        """A new exercise starts; what the last one broke is mended."""

    def call(self, call: Call) -> Outcome:
        """Runs the call; raises StudentError when there is no usable answer."""


    def call_ranks(self, calls: list[Call], exchange: Exchange) -> list[Outcome]:
        """Runs calls[rank] on a rank each, with a communicator of the exchange's as first argument."""


class Student:
    """Attribute access gives the student's functions: `student.adam_step(...)`."""

    def __init__(self, transport: Transport):
        self._transport = transport
        self.last_call: Call | None = None

    def __getattr__(self, name: str) -> Function:
        if name.startswith("_"):
            raise AttributeError(name)
        return Function(self, name)

    def begin(self, exercise: str) -> None:
        """The next calls belong to `exercise`."""
        self.last_call = None
        self._transport.begin(exercise)

    def _call(self, call: Call) -> Outcome:
        self.last_call = call
        return self._transport.call(call)


class Function:
    """One function of the student's."""

    def __init__(self, student: Student, name: str):
        self._student, self.__name__ = student, name

    def __call__(self, *args: Value, **kwargs: Value) -> Value:
        """The result. Raises ArgumentChanged if the function changed an argument."""
        return self._unchanged(Call(self.__name__, args, kwargs)).value

    def in_place(self, *args: Value, **kwargs: Value) -> tuple[Value, tuple, dict[str, Value]]:
        """For a function whose docstring says that it changes its arguments: result, args and kwargs afterwards."""
        outcome = self._student._call(Call(self.__name__, args, kwargs))
        return outcome.value, outcome.args, outcome.kwargs

    def vjp(self, *args: Value, cotangent: Value, **kwargs: Value) -> tuple[Value, list[Tensor | None]]:
        """The result, and the gradients of sum(result * cotangent) for every floating-point tensor in `args`.

        `cotangent` has the structure of the result: a tensor, or a list or tuple with None where no gradient flows.
        """
        outcome = self._unchanged(Call(self.__name__, args, kwargs, cotangent=cotangent))
        return outcome.value, outcome.gradients

    def on_ranks(self, args: list[tuple], cluster: Cluster | None = None, alike: int = 0, **kwargs: Value) -> Run:
        """Call it with (comm, *args[rank], **kwargs) on every rank: a *collective* exercise. Returns a cluster.Run.

        `alike` stands for that many ranks that all do as the only one in `args` does; see cluster.Exchange.
        """
        from course.cluster import Cluster, Exchange, Run
        exchange = Exchange(alike or len(args), cluster or Cluster(), bool(alike))
        calls = [Call(self.__name__, own, kwargs) for own in args]
        self._student.last_call = calls[0]
        outcomes = self._student._transport.call_ranks(calls, exchange)
        for call, outcome in zip(calls, outcomes):
            self._compare_arguments(call, outcome)
        return Run([outcome.value for outcome in outcomes], exchange.log, exchange.world)

    def _unchanged(self, call: Call) -> Outcome:
        return self._compare_arguments(call, self._student._call(call))

    def _compare_arguments(self, call: Call, outcome: Outcome) -> Outcome:
        for name, before, after in [*((f"number {i + 1}", a, b) for i, (a, b) in enumerate(zip(call.args, outcome.args))),
                                    *((name, call.kwargs[name], outcome.kwargs.get(name)) for name in call.kwargs)]:
            if before is not after and not callable(before) and (difference := first_difference(before, after, rtol=0, atol=0)) is not None:
                raise ArgumentChanged(self.__name__, name, before, difference.where)
        return outcome


class Local:
    """Calls functions of a namespace in this process: the notebook's own, the reference's, a mistake's."""

    def __init__(self, namespace: dict[str, Any]):
        self.namespace = namespace

    def begin(self, exercise: str) -> None:
        pass

    def call_ranks(self, calls: list[Call], exchange: Exchange) -> list[Outcome]:
        """Ranks are threads."""
        def body(rank: int, call: Call) -> Callable:
            args, kwargs = rebuild((exchange.watch(rank, call.args), call.kwargs), _isolate)
            return lambda post: on_rank(self._function(call.function), Call(call.function, args, kwargs), post, rank, exchange.world)
        return exchange.run([body(rank, call) for rank, call in enumerate(calls)]).values

    def call(self, call: Call) -> Outcome:
        function = self._function(call.function)
        return invoke(function, Call(call.function, *rebuild((call.args, call.kwargs), _isolate), call.cotangent))

    def _function(self, name: str) -> Callable:
        function = self.namespace.get(name)
        if not callable(function):
            raise NotWritten(name, "is not defined in this notebook")
        return function


def on_rank(function: Callable, call: Call, post: Callable, rank: int, world: int) -> Outcome:
    """`invoke` with a communicator before the arguments. Used on both sides of the pipe."""
    from course.comm import Communicator, with_hooks
    comm = Communicator(post, rank, world)
    args = tuple(with_hooks(a, comm) if callable(a) and not isinstance(a, Tensor) else a for a in call.args)
    outcome = invoke(lambda *args, **kwargs: function(comm, *args, **kwargs), Call(call.function, args, call.kwargs))
    return Outcome(outcome.value, outcome.args, outcome.kwargs)


def _isolate(leaf: Value) -> Value:
    """A callback that shares no tensor with the student, as over a pipe."""
    if not callable(leaf) or isinstance(leaf, Tensor):
        return leaf

    def callback(*args: Value) -> Value:
        try:
            return clone(leaf(*clone(args)))
        except AssertionError as error:     # what the test says of the arguments, and not where in its code
            raise StudentError(_first_line(error), "failed") from None
    return callback


def invoke(function: Callable, call: Call) -> Outcome:
    """Call `function` on copies of the arguments and check that the result is a value. Used on both sides of the pipe."""
    args, kwargs = clone(call.args), clone(call.kwargs)
    inputs: list[Tensor] = []
    if call.cotangent is not None:
        args = rebuild(args, lambda leaf: _require_grad(leaf, inputs))
    try:
        value = function(*args, **kwargs)
        gradients = None if call.cotangent is None else _gradients(call.function, value, call.cotangent, inputs)
    except NotImplementedError as error:
        raise NotWritten(call.function) from error
    except StudentError:
        raise
    except (Exception, SystemExit) as error:
        raise StudentError(explain(call.function, error)) from error
    try:
        for _ in walk(value):
            pass
    except NotAValue as error:
        raise StudentError(f"{call.function} returned {error}.", "failed") from None
    return Outcome(clone(value), _afterwards(call.args, args), _afterwards(call.kwargs, kwargs), gradients)


def _afterwards(before: Value, after: Value) -> Value:
    return before if _same(before, after) else clone(after)


def _same(before: Value, after: Value) -> bool:
    """A quick look; it may call a NaN changed."""
    if isinstance(before, Tensor):
        return (isinstance(after, Tensor) and (before.dtype, before.device, before.shape) == (after.dtype, after.device, after.shape)
                and equal(before, after))
    if type(before) in (list, tuple):
        return type(after) is type(before) and len(after) == len(before) and all(map(_same, before, after))
    if type(before) is dict:
        return type(after) is dict and before.keys() == after.keys() and all(_same(before[key], after[key]) for key in before)
    return callable(before) or (type(after) is type(before) and after == before)


def _require_grad(leaf: Value, inputs: list[Tensor]) -> Value:
    if isinstance(leaf, Tensor) and leaf.is_floating_point():
        leaf.requires_grad_(True)
        inputs.append(leaf)
        # A view of the leaf lets the function use in-place operations that a leaf would refuse,
        # and then "changed its argument" is reported instead of an autograd error.
        return leaf.view_as(leaf)
    return leaf


def _gradients(function: str, value: Value, cotangent: Value, inputs: list[Tensor]) -> list[Tensor | None]:
    results = list(value) if type(value) in (list, tuple) else [value]
    cotangents = list(cotangent) if type(cotangent) in (list, tuple) else [cotangent]
    if len(results) != len(cotangents):
        raise StudentError(f"{function} returned {len(results)} results where {len(cotangents)} are wanted.", "failed")
    outputs, weights = [], []
    for result, weight in zip(results, cotangents):
        if weight is None:
            continue
        if not isinstance(result, Tensor) or result.shape != weight.shape:
            raise StudentError(f"{function} returned {brief(result)} where a tensor of shape {list(weight.shape)} is wanted.", "failed")
        if result.requires_grad:
            outputs.append(result)
            weights.append(weight.to(result.dtype))
    if not outputs:
        return [None] * len(inputs)
    grads = torch.autograd.grad(outputs, inputs, weights, allow_unused=True)
    return [None if g is None else g.detach().clone() for g in grads]


def explain(function: str, error: BaseException) -> str:
    """What the student's code raised and in which of its own lines, in at most three lines of text."""
    if type(error).__name__ == "InterpreterError" and error.__cause__ is not None:  # Triton wraps what a kernel raises
        error = error.__cause__
    text = f"{function} raised {type(error).__name__}: {_first_line(error)}"
    own = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.name != "invoke"]
    inside = next((frame for frame in reversed(own) if not _is_library(frame.filename)), None)
    if inside is not None and inside.line:
        text += f"\n  in {inside.name}, line {inside.lineno}: {inside.line.strip()[:100]}"
    return text


def _first_line(error: BaseException) -> str:
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # the student's own exception class may be broken
        lines = []
    return lines[0][:200] if lines else "(no message)"


def _is_library(filename: str) -> bool:
    return any(part in filename for part in ("site-packages", "dist-packages", "/lib/python3", "course/spec", "course/kernels"))
