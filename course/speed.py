"""Speed targets on this device: the student's function against its baseline, and against the physical limit."""
from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from course import device, timing
from course.spec.asserts import assert_close
from course.spec.declare import SpeedTarget, WorkTarget
from course.spec.messages import first_line
from course.spec.run import Result
from course.spec.student import Local, Student, StudentError, explain


@dataclass(frozen=True)
class Measured:
    """One speed target on one device. `ratio` is None where the target was deferred or the answer is wrong."""
    target: SpeedTarget | WorkTarget
    ratio: timing.Ratio | None
    limit_seconds: float | None     # least time for one unit of work that the hardware allows
    limit_reason: str
    problem: str = ""               # why there is no ratio
    deferred: bool = False

    def result(self) -> Result:
        """As a verdict: the lower end of the interval must reach the target."""
        t = self.target
        if self.deferred:
            return Result(t.name, t.exercise, 0, 0, "deferred", f"{t.title} Deferred: {self.problem}")
        if self.ratio is None:
            return Result(t.name, t.exercise, 0, t.points, "failed", self.problem)
        if isinstance(t, WorkTarget):
            return work_result(t, self.ratio.ratio)
        status = self.ratio.reaches(t.ratio)
        words = (f"{self.ratio.ratio:.1f} times faster than {t.baseline.__name__} "
                 f"(95% interval {self.ratio.low:.1f} to {self.ratio.high:.1f}); wanted {t.ratio:g}.")
        return Result(t.name, t.exercise, t.points if status == "passed" else 0, t.points, status, words)

    def receipt(self) -> dict:
        """What the notebook carries along, and `autograder speed --json` writes. Seconds are for one unit of work; what is
        counted instead of timed has another `unit`."""
        ratio = self.ratio
        return {
            "target": self.target.name, "exercise": self.target.exercise, "wanted": self.target.ratio,
            "status": self.result().status, "problem": self.problem,
            "ratio": ratio and ratio.ratio, "low": ratio and ratio.low, "high": ratio and ratio.high,
            "seconds": ratio and ratio.candidate_seconds, "baseline_seconds": ratio and ratio.baseline_seconds,
            "unit": self.target.unit, "limit_seconds": self.limit_seconds, "limit": self.limit_reason, "windows": ratio and ratio.windows,
            "device": device.slug(), "torch": torch.__version__, "python": platform.python_version(),
            "date": datetime.date.today().isoformat(),
        }


def work_costs(target: WorkTarget, student: Student) -> tuple[float, float]:
    """What the student's function costs, wherever it runs, and what the baseline costs."""
    baseline = Student(Local({target.exercise: target.baseline}))
    return target.cost(getattr(student, target.exercise)), target.cost(getattr(baseline, target.exercise))


def work_result(target: WorkTarget, ratio: float) -> Result:
    status = "passed" if ratio >= target.ratio else "failed"
    words = f"{ratio:.2f} times less than {target.baseline.__name__}, counted and not timed; wanted {target.ratio:g}."
    return Result(target.name, target.exercise, target.points if status == "passed" else 0, target.points, status, words)


def measure(target: SpeedTarget | WorkTarget, function: Callable, *, seconds: float = 2.0, seed: int = 0) -> Measured:
    """Check the answer on one input, then time function and baseline by turns for about `seconds`."""
    if isinstance(target, WorkTarget):
        try:
            mine, theirs = work_costs(target, Student(Local({target.exercise: function})))
        except (StudentError, AssertionError) as error:
            return Measured(target, None, None, "", f"Not counted: {first_line(error)}")
        ratio = timing.Ratio(theirs / mine, theirs / mine, theirs / mine, mine, theirs, 1, "counted")
        return Measured(target, ratio, *(target.limit() if target.limit else (None, "")))
    reason = target.requires()
    if reason:
        return Measured(target, None, None, "", reason, deferred=True)
    inputs = target.inputs(seed)
    try:
        assert_close(target.work(function, *inputs), target.work(target.baseline, *target.inputs(seed)), target.exercise,
                     rtol=target.rtol, atol=target.atol)
    except NotImplementedError:
        return Measured(target, None, None, "", f"{target.exercise} is not written yet.")
    except AssertionError as error:
        return Measured(target, None, None, "", f"Not timed, because the answer is wrong: {first_line(error)}")
    except (StudentError, Exception) as error:
        return Measured(target, None, None, "", "Not timed: " + explain(target.exercise, error))
    limit, why = target.limit() if target.limit else (None, "")
    ratio = timing.compare(lambda *xs: target.work(function, *xs), lambda *xs: target.work(target.baseline, *xs),
                           target.inputs, seconds=seconds, seed=seed)
    return Measured(target, ratio, limit, why)
