"""Read a lab's specification from its folder."""
from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from course.spec.declare import Mistake, Probe, SpeedTarget, Test, WorkTarget, declared

VISIBLE, HIDDEN, MISTAKES, PROBES = "test_visible.py", "test_hidden.py", "mistakes.py", "probes.safetensors"


class SpecError(Exception):
    """The author's error, in one line with file and line number."""


@dataclass
class Specification:
    """The tests, probes, mistakes and speed targets of one lab, as found in `files`."""
    folder: Path
    files: list[Path] = field(default_factory=list)
    tests: list[Test] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    mistakes: list[Mistake] = field(default_factory=list)
    speeds: list[SpeedTarget | WorkTarget] = field(default_factory=list)

    def exercises(self) -> list[str]:
        """Names in the order in which the tests mention them first."""
        return list(dict.fromkeys(item.exercise for item in [*self.tests, *self.speeds]))

    def points(self, exercise: str) -> float:
        """Points of the exercise's tests, speed targets apart."""
        return sum(test.points for test in self.tests if test.exercise == exercise)


def load(folder: Path, *, hidden: bool = False) -> Specification:
    """The specification in `folder`; with `hidden`, the hidden tests and the mistakes too."""
    folder = Path(folder).resolve()
    if not (folder / VISIBLE).is_file():
        raise SpecError(f"{folder / VISIBLE}: no such file; a lab keeps its visible tests there")
    spec = Specification(folder)
    for name, is_hidden in [(VISIBLE, False)] + [(HIDDEN, True), (MISTAKES, True)] * hidden:
        if not (folder / name).is_file():
            continue
        module = import_file(folder / name)
        if name != MISTAKES:
            spec.files.append(folder / name)
            _every_test_names_an_exercise(folder / name, module)
        for item in declared(module, is_hidden):
            list_of = {Test: spec.tests, Probe: spec.probes, Mistake: spec.mistakes, SpeedTarget: spec.speeds,
                       WorkTarget: spec.speeds}[type(item)]
            if type(item) is not Mistake and any(other.name == item.name for other in list_of):
                continue  # imported from the visible file into the hidden one
            list_of.append(item)
    return spec


def import_file(path: Path) -> ModuleType:
    """Import a file afresh, whatever its name; its folder does not shadow any installed module."""
    name = f"trainfast_spec_{path.parent.name}_{path.stem}"
    module_spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:
        line = getattr(error, "lineno", None) or _deepest_line(error, path)
        raise SpecError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    return module


def _deepest_line(error: BaseException, path: Path) -> int:
    trace, line = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _every_test_names_an_exercise(path: Path, module: ModuleType) -> None:
    for name, thing in vars(module).items():
        if name.startswith("test_") and callable(thing) and getattr(thing, "__module__", None) == module.__name__:
            if "__spec__" not in vars(thing):
                from course.spec.declare import _line
                raise SpecError(f"{path}:{_line(thing)}: {name} names no exercise; "
                                'put @exercise("name", points=...) above its other decorators')
