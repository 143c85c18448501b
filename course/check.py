"""The student's self-check: `check(adam_step)` under each exercise, `speed(flat_adam_step)` under "How fast?".

    setup("11_saddle_points")     once, at the top: finds the lab, shows the device card, warms up
    check(adam_step)              the exercise's visible tests, about a second
    speed(flat_adam_step)         the speed targets on this device, and a receipt that travels with the notebook

In the notebook a failing check shows what is wrong and goes on; under nbgrader it also fails its cell.
"""
from __future__ import annotations

import contextlib
import os
import secrets
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from course import verdict
from course.spec.load import VISIBLE, PROBES, Specification, load
from course.spec.recordings import Recordings, load_recordings
from course.spec.run import Result, run, warm_up
from course.spec.student import Local, Student

ON_COLAB = """On Colab: all your work is in this one notebook, and Colab forgets it unless you keep it.
Keep it with File, Save a copy in Drive, or File, Download .ipynb. After a restart open it again (File, Open or Upload
notebook), run this cell, and go on where you were."""
JUDGED = "TRAINFAST_JUDGED"  # set in the process that runs a submission: nothing is shown or checked there


@contextlib.contextmanager
def judged() -> Iterator[None]:
    """Inside, setup(), check() and speed() do nothing."""
    before = os.environ.get(JUDGED)
    os.environ[JUDGED] = "1"
    try:
        yield
    finally:
        os.environ.pop(JUDGED)
        if before is not None:
            os.environ[JUDGED] = before


class CheckFailed(Exception):
    """A check failed while nbgrader was running the notebook."""

    def _render_traceback_(self) -> list[str]:  # IPython shows these lines instead of a traceback
        return str(self).splitlines()


class _Lab:
    """The lab that this notebook is: its visible specification, loaded once and again when the file changes."""

    def __init__(self, name: str):
        self.name, self.folder = name, find_lab(name)
        self._stamp, self._loaded = None, None

    def specification(self) -> tuple[Specification, Recordings | None]:
        stamp = tuple((self.folder / name).stat().st_mtime_ns for name in (VISIBLE, PROBES) if (self.folder / name).exists())
        if stamp != self._stamp:
            probes = self.folder / PROBES
            self._loaded = load(self.folder), load_recordings(probes) if probes.is_file() else None
            self._stamp = stamp
        return self._loaded


_lab: _Lab | None = None


def find_lab(name: str) -> Path:
    """The folder with the lab's visible tests: beside the notebook, in the repository, or in the installed package."""
    package = Path(__file__).resolve().parent
    for folder in (Path.cwd(), Path.cwd() / name, package.parent / "labs" / name, package / "_labs" / name):
        if folder.name == name and (folder / VISIBLE).is_file():
            return folder
    if (Path.cwd() / VISIBLE).is_file() and (Path.cwd() / PROBES).is_file():
        return Path.cwd()
    raise FileNotFoundError(f"The tests of lab {name} are not here: no {VISIBLE} beside this notebook ({Path.cwd()}), nor in "
                            "the installed course. Keep the notebook in its lab's folder, or install the course again.")


def setup(name: str) -> None:
    """Find the lab, show the device card, and pay now for what the first check would wait for (about two seconds)."""
    global _lab
    if os.environ.get(JUDGED):
        return
    _lab = _Lab(name)
    from course.device import describe
    verdict.show_card(describe())
    if "COLAB_RELEASE_TAG" in os.environ:
        print(ON_COLAB)
    warm_up()


def check(function: Callable) -> None:
    """Run the visible tests of the exercise that `function` solves, and show the verdict."""
    if os.environ.get(JUDGED):
        return
    spec, recordings = _ready()
    name = _name_of(function, spec)
    try:
        results = run(spec, Student(Local(_namespace(function))), seed=secrets.randbits(31), recordings=recordings, exercises=[name])
    except KeyboardInterrupt:
        print(f"The check of {name} was interrupted. A loop that never ends? Run the cell again when it is mended.")
        return
    verdict.show(name, results)
    _fail_under_nbgrader(results)


def speed(function: Callable) -> None:
    """Measure the exercise's speed targets on this device, show them, and leave a receipt in the notebook."""
    if os.environ.get(JUDGED):
        return
    from course.speed import measure
    spec, _ = _ready()
    name = _name_of(function, spec)
    measured = [measure(target, _namespace(function)[name]) for target in spec.speeds if target.exercise == name]
    if not measured:
        raise ValueError(f"{name} has no speed target.")
    verdict.show_speed(name, measured)
    _fail_under_nbgrader([m.result() for m in measured])


def _ready() -> tuple[Specification, Recordings | None]:
    if _lab is None:
        raise RuntimeError("Run the setup cell at the top of the notebook first; it tells the checks which lab this is.")
    return _lab.specification()


def _name_of(function: Callable, spec: Specification) -> str:
    name = getattr(function, "__name__", None)
    if name not in spec.exercises():
        raise ValueError(f"check() wants one of this lab's functions, {', '.join(spec.exercises())}; "
                         f"it got {name or type(function).__name__}.")
    return name


def _namespace(function: Callable) -> dict:
    """The notebook's names, so that one exercise may use another; the checked function under its own name."""
    names = dict(getattr(sys.modules.get("__main__"), "__dict__", {}))
    names.update(getattr(function, "__globals__", {}))
    return {**names, function.__name__: function}


def _fail_under_nbgrader(results: list[Result]) -> None:
    wrong = [r for r in results if r.status in ("failed", "error", "timeout")]
    if wrong and os.environ.get("NBGRADER_EXECUTION"):
        raise CheckFailed("\n".join(r.message for r in wrong[:1]))
