"""What the author of a lab writes in test_visible.py, test_hidden.py and mistakes.py.

    @exercise("adam_step", points=2)            a pytest test of that exercise, with the `student` fixture
    @probe("adam_step")                         a fixed computation whose results identify a mistake
    @mistake("adam_step", caught_by="test_...") a known wrong implementation; its docstring is the hint
    @speed("flat_adam_step", points=2, ratio=8, inputs=...)   decorates the baseline that must be beaten
    @work("prefetch", points=2, ratio=1.4, cost=...)    the same where something is counted instead of timed
"""
from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from course.spec.values import Value


@dataclass(frozen=True)
class Test:
    """One test of the specification. `points` are earned when it passes.

    `requires()` returns None, or the reason why this device cannot judge the test: then it is deferred.
    """
    name: str
    exercise: str
    points: float
    hint: str           # first paragraph of the docstring: where to look when no known mistake matches
    hidden: bool
    line: int
    requires: Callable[[], str | None] = lambda: None


@dataclass(frozen=True)
class Probe:
    """`run(student)` computes a value from fixed inputs; equal values mean equal behaviour."""
    name: str
    exercise: str
    run: Callable[[Any], Value]


@dataclass(frozen=True)
class Mistake:
    """A wrong implementation of one exercise. `hint` speaks to the student."""
    name: str
    exercise: str
    caught_by: str
    function: Callable
    hint: str


@dataclass(frozen=True)
class SpeedTarget:
    """The student's function must be `ratio` times faster than `baseline` on inputs(seed).

    `work(function, *inputs)` is what one timed unit does with the function (by default one call); it must return
    something that depends on every call, so that nothing can be left out. `limit()` returns (seconds, words): the
    least time that the hardware allows for one unit, and why. `requires()` returns None, or the reason why this
    device cannot judge the target: then it is deferred.
    """
    name: str
    exercise: str
    points: float
    ratio: float
    baseline: Callable
    inputs: Callable[[int], tuple]
    work: Callable[..., Value]
    limit: Callable[[], tuple[float, str]] | None
    requires: Callable[[], str | None]
    rtol: float
    atol: float
    title: str          # first line of the baseline's docstring
    unit: str = "s"     # as a WorkTarget has one


@dataclass(frozen=True)
class WorkTarget:
    """What `cost(function)` counts must be `ratio` times less for the student's function than for `baseline`.

    `cost` calls the function as a test would, `function.on_ranks(...)` for example, and returns a number that it sees
    from outside: simulated seconds, bytes. `unit` says what it counts; "s" stands for seconds. `limit()` returns
    (cost, words): the least that is possible, and why.
    """
    name: str
    exercise: str
    points: float
    ratio: float
    baseline: Callable
    cost: Callable[[Any], float]
    limit: Callable[[], tuple[float, str]] | None
    title: str
    unit: str = "s"
    requires: Callable[[], str | None] = lambda: None


def exercise(name: str, points: float, requires: Callable[[], str | None] = lambda: None) -> Callable:
    """Marks a pytest test as one of exercise `name`; see Test. Must be the outermost decorator."""
    def mark(test: Callable) -> Callable:
        test.__spec__ = ("test", name, points, requires)
        return test
    return mark


def probe(name: str) -> Callable:
    """Marks `f(student) -> value`, with fixed inputs, as a probe of exercise `name`."""
    def mark(run: Callable) -> Callable:
        run.__spec__ = ("probe", name)
        return run
    return mark


def mistake(name: str, caught_by: str) -> Callable:
    """Marks a wrong implementation of exercise `name` that the test `caught_by` must reject."""
    def mark(function: Callable) -> Callable:
        function.__spec__ = ("mistake", name, caught_by)
        return function
    return mark


def speed(name: str, points: float, ratio: float, inputs: Callable[[int], tuple], *,
          work: Callable[..., Value] = lambda function, *inputs: function(*inputs),
          limit: Callable[[], tuple[float, str]] | None = None,
          requires: Callable[[], str | None] = lambda: None,
          rtol: float = 1e-4, atol: float = 1e-6) -> Callable:
    """Marks a baseline that exercise `name` must beat by `ratio`; see SpeedTarget."""
    def mark(baseline: Callable) -> Callable:
        baseline.__spec__ = ("speed", SpeedTarget(f"speed_against_{baseline.__name__}", name, points, ratio, baseline,
                                                  inputs, work, limit, requires, rtol, atol, first_paragraph(baseline)))
        return baseline
    return mark


def work(name: str, points: float, ratio: float, cost: Callable[[Any], float], *,
         limit: Callable[[], tuple[float, str]] | None = None, unit: str = "s") -> Callable:
    """Marks a baseline whose cost exercise `name` must undercut by `ratio`; see WorkTarget."""
    def mark(baseline: Callable) -> Callable:
        baseline.__spec__ = ("speed", WorkTarget(f"work_against_{baseline.__name__}", name, points, ratio, baseline, cost,
                                                 limit, first_paragraph(baseline), unit))
        return baseline
    return mark


def first_paragraph(function: Callable) -> str:
    """The docstring's first paragraph on one line, or ""."""
    text = textwrap.dedent(inspect.getdoc(function) or "").strip().split("\n\n")[0]
    return " ".join(text.split())


def declared(module: Any, hidden: bool) -> list[Test | Probe | Mistake | SpeedTarget | WorkTarget]:
    """Everything that the decorators above marked in a module, in the order of the file."""
    found = []
    for name, thing in vars(module).items():
        spec = vars(thing).get("__spec__") if callable(thing) and hasattr(thing, "__dict__") else None
        if not isinstance(spec, tuple):
            continue
        match spec:
            case ("test", exercise_name, points, requires):
                found.append(Test(name, exercise_name, points, first_paragraph(thing), hidden, _line(thing), requires))
            case ("probe", exercise_name):
                found.append(Probe(name, exercise_name, thing))
            case ("mistake", exercise_name, caught_by):
                found.append(Mistake(name, exercise_name, caught_by, thing, first_paragraph(thing)))
            case ("speed", target):
                found.append(target)
    return found


def _line(function: Callable) -> int:
    inner = getattr(getattr(function, "hypothesis", None), "inner_test", function)
    return inspect.unwrap(inner).__code__.co_firstlineno
