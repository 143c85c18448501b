"""Speed targets on this device: the student's function against its baseline, and against the physical limit."""
from __future__ import annotations

import datetime
import platform
from collections.abc import Callable
from dataclasses import dataclass

import torch

from course import device, timing
from course.spec.asserts import assert_close
from course.spec.declare import SpeedTarget
from course.spec.messages import first_line
from course.spec.run import Result
from course.spec.student import StudentError, explain


@dataclass(frozen=True)
class Measured:
    """One speed target on one device. `ratio` is None where the target was deferred or the answer is wrong."""
    target: SpeedTarget
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
        status = self.ratio.reaches(t.ratio)
        words = (f"{self.ratio.ratio:.1f} times faster than {t.baseline.__name__} "
                 f"(95% interval {self.ratio.low:.1f} to {self.ratio.high:.1f}); wanted {t.ratio:g}.")
        return Result(t.name, t.exercise, t.points if status == "passed" else 0, t.points, status, words)

    def receipt(self) -> dict:
        """What the notebook carries along, and `autograder speed --json` writes. Seconds are for one unit of work."""
        ratio = self.ratio
        return {
            "target": self.target.name, "exercise": self.target.exercise, "wanted": self.target.ratio,
            "status": self.result().status, "problem": self.problem,
            "ratio": ratio and ratio.ratio, "low": ratio and ratio.low, "high": ratio and ratio.high,
            "seconds": ratio and ratio.candidate_seconds, "baseline_seconds": ratio and ratio.baseline_seconds,
            "limit_seconds": self.limit_seconds, "limit": self.limit_reason, "windows": ratio and ratio.windows,
            "device": device.slug(), "torch": torch.__version__, "python": platform.python_version(),
            "date": datetime.date.today().isoformat(),
        }


def measure(target: SpeedTarget, function: Callable, *, seconds: float = 2.0, seed: int = 0) -> Measured:
    """Check the answer on one input, then time function and baseline by turns for about `seconds`."""
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
