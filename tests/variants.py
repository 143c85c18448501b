"""`@variant(exercise)` marks a right answer that is written otherwise than the reference, in tests/lab_NN/correct_variants.py.

A lesson for whoever changes a lab's tests: only what a docstring promises may be asked for.
"""
from collections.abc import Callable
from types import ModuleType


def variant(exercise: str) -> Callable:
    def mark(function: Callable) -> Callable:
        function.exercise = exercise
        return function
    return mark


def marked(module: ModuleType) -> dict[str, list[Callable]]:
    """The marked functions of a module by exercise, in their order."""
    found: dict[str, list[Callable]] = {}
    for function in vars(module).values():
        if callable(function) and hasattr(function, "exercise"):
            found.setdefault(function.exercise, []).append(function)
    return found
