"""Run a specification against a student: pytest and hypothesis inside this process, one result a test."""
from __future__ import annotations

import contextlib
import io
import os
import random
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import hypothesis.configuration
import pytest
import torch

from course.device import prepare_triton
from course.spec.load import Specification
from course.spec.messages import compose
from course.spec.recordings import Match, Recordings
from course.spec.student import Student, StudentError

Status = Literal["passed", "failed", "error", "timeout", "deferred", "inconclusive"]

# What Hypothesis keeps for itself does not belong beside the student's notebook.
hypothesis.configuration.set_hypothesis_home_dir(Path(tempfile.gettempdir()) / f"hypothesis-{os.environ.get('USER', 'anyone')}")
# No shrinking: each call may cross a pipe. No database: nothing is kept from one student to the next.
hypothesis.settings.register_profile(
    "trainfast", max_examples=25, deadline=None, database=None, print_blob=False, report_multiple_bugs=False,
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    suppress_health_check=list(hypothesis.HealthCheck))


@dataclass
class Result:
    """The verdict of one test or speed target. `points` of `max_points`; a deferred one has neither."""
    name: str
    exercise: str
    points: float
    max_points: float
    status: Status
    message: str = ""
    mistake: str = ""
    hidden: bool = False

    def to_dict(self) -> dict:
        return asdict(self)


class SpecificationBroken(RuntimeError):
    """pytest did not report on every test: the course is at fault, or an interrupt came. Text says which."""


def run(spec: Specification, student: Student, *, seed: int, recordings: Recordings | None = None,
        exercises: list[str] | None = None, reference: Student | None = None, stop_early: bool = False) -> list[Result]:
    """Run the tests of `exercises` (default: all) against `student` with inputs drawn from `seed`.

    `reference` serves hidden tests that compare with the reference solution. `stop_early` stops at the first
    failure and returns what was run until then.
    """
    wanted = {test.name: test for test in spec.tests if exercises is None or test.exercise in exercises}
    plugin = _Plugin(spec, wanted, student, reference, recordings, seed)
    for test in wanted.values():
        if reason := test.requires():
            plugin.results[test.name] = Result(test.name, test.exercise, 0, 0, "deferred", f"Deferred: {reason}", hidden=test.hidden)
    output = io.StringIO()
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-p", "no:unraisableexception",
                 "-p", "no:threadexception", "-p", "no:warnings", "-c", os.devnull, f"--rootdir={spec.folder}", "--noconftest",
                 "--import-mode=importlib", "--capture=no", "--tb=no", *(["-x"] if stop_early else []), *map(str, spec.files)]
    for file in spec.files:
        sys.modules.pop(file.stem, None)  # or pytest would take what it imported before: another lab's, or an older text
    profile = hypothesis.settings.get_current_profile_name()
    hypothesis.settings.load_profile("trainfast")
    try:
        with _without_autoloaded_plugins(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            code = pytest.main(arguments, plugins=[plugin])
    finally:
        hypothesis.settings.load_profile(profile)
    results = [plugin.results[name] for name in wanted if name in plugin.results]
    if plugin.interrupted:
        raise KeyboardInterrupt
    if code not in (0, 1, 5) or (len(results) < len(wanted) and not stop_early):
        raise SpecificationBroken(f"pytest ended with code {code} and {len(results)} of {len(wanted)} verdicts:\n{output.getvalue()[-2000:]}")
    return results


@contextlib.contextmanager
def _without_autoloaded_plugins():
    """Whatever pytest plugins are installed beside the course must not change a verdict, nor take time."""
    before = os.environ.get("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    outer = os.environ.pop("PYTEST_CURRENT_TEST", None)
    try:
        yield
    finally:
        os.environ.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD")
        if before is not None:
            os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = before
        if outer is not None:
            os.environ["PYTEST_CURRENT_TEST"] = outer


class _Plugin:
    """Gives tests their fixtures, their seed, and turns their outcomes into results."""

    def __init__(self, spec, wanted, student, reference, recordings, seed):
        self.spec, self.wanted, self.seed = spec, wanted, seed
        self._student, self._reference, self._recordings = student, reference, recordings
        self.results: dict[str, Result] = {}
        self.diagnoses: dict[str, Match | None] = {}
        self.interrupted = False

    # Hypothesis calls a test many times with one fixture value; here that is intended.
    @pytest.fixture
    def student(self) -> Student:
        return self._student

    @pytest.fixture
    def reference(self) -> Student:
        if self._reference is None:
            raise RuntimeError("this run has no reference solution; only hidden tests may ask for one")
        return self._reference

    @pytest.fixture
    def recorded(self):
        """`recorded(probe)` is the reference's recorded answer on one of the file's own probes."""
        return lambda probe: self._recordings.expected(probe.__name__, probe.__spec__[1])

    def pytest_collection_modifyitems(self, items):
        # A test that the hidden file imports from the visible one is collected twice: run it once.
        first = {}
        for item in items:
            if item.originalname in self.wanted and item.originalname not in self.results:
                first.setdefault(item.originalname, item)
        items[:] = first.values()
        for item in items:
            if hypothesis.is_hypothesis_test(item.obj):
                hypothesis.seed(self.seed)(item.obj)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        random.seed(self.seed)
        torch.manual_seed(self.seed)
        self._student.begin(self.wanted[item.originalname].exercise)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        test = self.wanted[item.originalname]
        if call.excinfo is not None:
            self.results[test.name] = self._failure(test, _cause(call.excinfo.value))
        elif call.when == "call":
            self.results[test.name] = Result(test.name, test.exercise, test.points, test.points, "passed", hidden=test.hidden)
        return report

    def pytest_keyboard_interrupt(self, excinfo):
        self.interrupted = excinfo.type is KeyboardInterrupt  # pytest uses a subclass for files it cannot import

    def _failure(self, test, error: BaseException) -> Result:
        last_call = self._student.last_call
        status = error.status if isinstance(error, StudentError) else "failed" if isinstance(error, AssertionError) else "error"
        match = None if status == "timeout" else self._diagnose(test.exercise)
        if status == "error" and not isinstance(error, StudentError):
            status = "failed"  # the test stumbled over what the student returned
        message = compose(test, error, match, last_call)
        return Result(test.name, test.exercise, 0, test.points, status, message, match.mistake if match else "", test.hidden)

    def _diagnose(self, exercise: str) -> Match | None:
        if self._recordings is None:
            return None
        if exercise not in self.diagnoses:
            self.diagnoses[exercise] = self._recordings.diagnose(exercise, self._student, self.spec.probes)
        return self.diagnoses[exercise]


def _cause(error: BaseException) -> BaseException:
    """Hypothesis wraps a function that answers differently each time; say that instead."""
    if type(error).__name__ in ("FlakyFailure", "Flaky"):
        inner = [e for e in getattr(error, "exceptions", []) if isinstance(e, StudentError)]
        return inner[0] if inner else AssertionError("the same call gave two different results; "
                                                     "does the function use a global variable or a random number?")
    return error


def warm_up() -> None:
    """Pay once, in the setup cell, for what the first check would otherwise wait for: about two seconds."""
    start = time.perf_counter()
    prepare_triton()
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])  # imports torch._dynamo
    with _without_autoloaded_plugins(), contextlib.redirect_stdout(io.StringIO()):
        pytest.main(["-q", "-p", "no:cacheprovider", "--version"])
    sys.stdout.flush()
    return time.perf_counter() - start
