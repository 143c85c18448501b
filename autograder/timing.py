"""Speed, judged from outside: the clock, the inputs' seeds and the verdict are here, the work is in the sandbox.

A window: the judge reveals fresh seeds and starts the clock; the child draws the inputs, works, and commits to every
output by its hash; the judge picks some outputs at random, and stops the clock when it holds them. Picked outputs must
match their hashes and the baseline's answers. So nothing can be computed beforehand, put off, or left out. The
student's windows alternate with the baseline's in a clean process of its own; what drawing and handing over cost is
measured with no work at all, and taken off both.
"""
from __future__ import annotations

import secrets
import time

from filelock import FileLock

from autograder.remote import Remote
from autograder.worker import digest
from course.spec.asserts import assert_close
from course.spec.declare import SpeedTarget, WorkTarget
from course.spec.run import Result
from course.spec.student import Local, Student, StudentError
from course.speed import work_costs, work_result
from course.timing import ratio_interval

PICKED = 4
WINDOW_SECONDS = 0.1    # what the student's window should last, so that the pipe and the clock do not matter
BASELINE_SECONDS = 0.3  # and the baseline's
FEW_PAIRS, PAIRS, MAX_UNITS = 6, 12, 256
CLEAR = 1.25            # so far beyond the target, or so far from it, a few pairs are enough
MOST_STAGING = 0.5      # of a window: who draws the inputs faster than they are drawn here gains no more than that
# One timing at a time on this machine, whoever grades. Not in tempfile's folder, which each worker has another of.
# The kernel lets go of it when its holder dies.
LOCK = "/tmp/trainfast-timing.lock"
LONGEST_SECONDS, TARGET_SECONDS = 60.0, 240.0   # one window, and all of them: a slow machine must not look like a fault


def judge_speed(lab, server, remote: Remote, target: SpeedTarget | WorkTarget, tests: list[Result]) -> Result:
    """The verdict on one speed target; only right answers are timed."""
    if reason := target.requires():
        return Result(target.name, target.exercise, 0, 0, "deferred", f"{target.title} Deferred: {reason}")
    wrong = [t for t in tests if t.exercise == target.exercise and t.status != "passed"]
    if wrong:
        return Result(target.name, target.exercise, 0, target.points, "failed", "Not timed, because the answer is not right yet.")
    if isinstance(target, WorkTarget):
        return _judge_work(target, Student(remote))
    return _judge(lab, server, remote, "student", target)


def judge_baseline(lab, server, target: SpeedTarget | WorkTarget) -> Result:
    """The verdict that the baseline itself would get, judged as a submission: never a pass."""
    if isinstance(target, WorkTarget):
        return _judge_work(target, Student(Local({target.exercise: target.baseline})))
    remote = Remote(server, [])
    try:
        return _judge(lab, server, remote, "baseline", target)
    finally:
        remote.close()


def _judge_work(target: WorkTarget, student: Student) -> Result:
    """Counted here, by the judge: no clock, no noise."""
    try:
        student.begin(target.name)
        mine, theirs = work_costs(target, student)
    except (StudentError, AssertionError) as error:
        return Result(target.name, target.exercise, 0, target.points, getattr(error, "status", "failed"),
                      f"Not counted: {str(error).splitlines()[0]}")
    return work_result(target, theirs / mine)


def _judge(lab, server, remote: Remote, who: str, target: SpeedTarget) -> Result:
    with FileLock(LOCK, mode=0o666):
        return _judge_alone(lab, server, remote, who, target)


def _judge_alone(lab, server, remote: Remote, who: str, target: SpeedTarget) -> Result:
    baseline = Remote(server, [])
    try:
        for each in (remote, baseline):
            each.begin(target.name, TARGET_SECONDS)
            each.ask("targets", {"visible": str(lab.released_folder / "test_visible.py")}, None, "loaded", name=target.exercise)
        ratio, low, high = _ratio(target, remote, who, baseline)
    except (StudentError, AssertionError) as error:
        status = getattr(error, "status", "failed")
        return Result(target.name, target.exercise, 0, target.points, status, f"Not timed: {str(error).splitlines()[0]}")
    finally:
        baseline.close()
    status = "passed" if low >= target.ratio else "failed" if high < target.ratio else "inconclusive"
    words = (f"{ratio:.1f} times faster than {target.baseline.__name__} (95% interval {low:.1f} to {high:.1f}); "
             f"wanted {target.ratio:g}.")
    most = 0 if status == "inconclusive" else target.points     # never a fail: it leaves score and maximum
    return Result(target.name, target.exercise, target.points if status == "passed" else 0, most, status, words)


def _ratio(target: SpeedTarget, remote: Remote, who: str, baseline: Remote) -> tuple[float, float, float]:
    def in_peace(role: str, n: int) -> float:
        """A window of the clean process. What the submission left running must not take time from it."""
        with remote.paused():
            return _window(target, baseline, role, n)

    units = 1
    while (seconds := _window(target, remote, who, units)) < WINDOW_SECONDS and units < MAX_UNITS:
        units = min(MAX_UNITS, max(units + 1, int(units * min(8.0, 1.2 * WINDOW_SECONDS / seconds))))
    # One baseline window is as long as a few of its units: per unit is what is compared.
    base_units = max(1, min(units, int(BASELINE_SECONDS / in_peace("baseline", 1))))
    times: dict[str, list[float]] = {"student": [], "baseline": []}
    for pair in range(PAIRS):
        turns = [("student", units), ("baseline", base_units)]
        for side, n in turns if pair % 2 == 0 else reversed(turns):
            staging = in_peace("identity", n)
            seconds = _window(target, remote, who, n) if side == "student" else in_peace("baseline", n)
            times[side].append(_net(seconds, staging) / n)
        if pair + 1 == FEW_PAIRS:
            ratio, low, high = ratio_interval(times["baseline"], times["student"])
            if low >= CLEAR * target.ratio or CLEAR * high <= target.ratio:
                return ratio, low, high
    return ratio_interval(times["baseline"], times["student"])


def _net(seconds: float, staging: float) -> float:
    return max(seconds - staging, (1 - MOST_STAGING) * seconds)


def _window(target: SpeedTarget, remote: Remote, who: str, units: int) -> float:
    """Seconds of one checked window."""
    seeds = [secrets.randbits(31) for _ in range(units)]
    picked = sorted(secrets.SystemRandom().sample(range(units), min(PICKED, units)))
    name = target.exercise
    start = time.perf_counter()
    remote.ask("window", {"target": target.name, "who": who, "seeds": seeds}, None, "committed", name=name,
               seconds=LONGEST_SECONDS)
    digests = remote.last_body.get("digests")
    outputs = remote.ask("pick", {"picked": picked}, None, "outputs", name=name, seconds=LONGEST_SECONDS)
    seconds = time.perf_counter() - start
    if type(digests) is not list or len(digests) != units or type(outputs) is not list or len(outputs) != len(picked):
        raise StudentError(f"{name}: the outputs of a timing window did not come in full.", "error")
    if who == "student":
        for index, output in zip(picked, outputs):
            if digest(output) != digests[index]:
                raise StudentError(f"{name}: an output of a timing window was changed after it was due.")
            expected = target.work(target.baseline, *target.inputs(seeds[index]))
            assert_close(output, expected, name, rtol=target.rtol, atol=target.atol)
    return seconds
