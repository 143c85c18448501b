"""The specification of a lab: exercises, probes, mistakes, and the runner that judges a student by them."""
from course.spec.asserts import assert_close, assert_that
from course.spec.declare import exercise, mistake, probe, speed, work

__all__ = ["assert_close", "assert_that", "exercise", "mistake", "probe", "speed", "work"]
