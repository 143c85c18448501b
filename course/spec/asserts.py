"""Assertions whose failures explain themselves to a student."""
from __future__ import annotations

from course.spec.values import Value, first_difference


class Mismatch(AssertionError):
    """Two values differ. Keeps its parts, so that a hidden test's message can leave the numbers out."""

    def __init__(self, what: str, expected: str, got: str, where: str = "", why: str = ""):
        self.what, self.expected, self.got, self.where, self.why = what, expected, got, where, why
        super().__init__(f"{what}{where}: expected {expected}, got {got}" + (f" ({why})" if why else ""))


def assert_close(got: Value, expected: Value, what: str = "result", *, rtol: float = 1e-5, atol: float = 1e-8) -> None:
    """`got` equals `expected` up to atol + rtol * |expected|, in structure, shapes and dtypes too.

    `what` names the quantity in the message: "param after step 3".
    """
    __tracebackhide__ = True
    difference = first_difference(expected, got, rtol=rtol, atol=atol)
    if difference is not None:
        raise Mismatch(what, difference.expected, difference.got, difference.where, difference.why)


def assert_that(condition: bool, what: str) -> None:
    """`condition` holds; otherwise `what` says, in a full sentence, what is so instead."""
    __tracebackhide__ = True
    if not condition:
        raise AssertionError(what)
