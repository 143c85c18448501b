"""The labs of the repository, their sources, and the namespace that a lab's reference solutions live in."""
from __future__ import annotations

import hashlib
import inspect
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from autograder.script import Cell, cut, fail
from course.check import judged
from course.device import prepare_triton
from course.spec.load import HIDDEN, VISIBLE, SpecError, Specification, load

LAB_FOLDER = re.compile(r"\d\d_[a-z0-9_]+")


@dataclass(frozen=True)
class LabSource:
    """A lab's script. `name` is its topic: saddle_points for solutions/11_saddle_points."""
    folder: Path
    name: str
    path: Path
    cells: tuple[Cell, ...]

    def of_kind(self, *kinds: str) -> list[Cell]:
        return [cell for cell in self.cells if cell.kind in kinds]


# ---------------------------------------------------------------- which labs there are

def find_root(start: Path | None = None) -> Path:
    """The repository: the nearest folder at or above `start` (default: here) with solutions/, else this checkout."""
    start = (start or Path.cwd()).resolve()
    for folder in (start, *start.parents, Path(__file__).resolve().parents[1]):
        if (folder / "solutions").is_dir() and (folder / "pyproject.toml").is_file():
            return folder
    raise SpecError(f"{start}: no solutions/ here or above; run this inside the course's repository")


def all_labs(root: Path) -> list[Path]:
    """The folders solutions/NN_topic, in order."""
    return sorted(p for p in (root / "solutions").iterdir() if p.is_dir() and LAB_FOLDER.fullmatch(p.name))


def find_labs(names: Iterable[str], root: Path) -> list[Path]:
    """The folders of the labs named by number ("11"), by folder name or by path; all labs if none is named."""
    labs = all_labs(root)
    found = []
    for name in names:
        wanted = Path(name).name
        matches = [lab for lab in labs if wanted in (lab.name, lab.name[:2])]
        if not matches:
            raise SpecError(f"there is no lab {name}; the labs are {', '.join(lab.name for lab in labs) or 'none yet'}")
        found += matches
    return found or labs


# ---------------------------------------------------------------- one lab

def load_lab_source(folder: Path) -> LabSource:
    """Read the script in `folder`. Raises SpecError, in one line with file and line number."""
    folder = Path(folder).resolve()
    if not LAB_FOLDER.fullmatch(folder.name):
        raise SpecError(f"{folder}: a lab's folder is called NN_topic, like 11_saddle_points")
    name = folder.name[3:]
    path = folder / f"{name}.py"
    if not path.is_file():
        raise SpecError(f"{path}: no such file; a lab's notebook is the script named like its folder")
    lab = LabSource(folder, name, path, tuple(cut(path)))
    setup = next(iter(lab.of_kind("setup")), None)
    if setup is None:
        fail(path, 1, 'no setup cell; one code cell has tags=["setup"]')
    if not re.search(rf"^setup\([\"']{folder.name}[\"']\)", setup.source, re.MULTILINE):
        fail(path, setup.line, f'the setup cell does not call setup("{folder.name}")')
    return lab


def load_lab(folder: Path) -> tuple[LabSource, Specification]:
    """The script and the whole specification in `folder`, after checking that they speak of the same exercises."""
    lab = load_lab_source(folder)
    spec = load(lab.folder, hidden=True)
    _same_exercises(lab, spec)
    return lab, spec


def _same_exercises(lab: LabSource, spec: Specification) -> None:
    solutions, checks, speeds = ({cell.name: cell for cell in lab.of_kind(kind)}
                                 for kind in ("solution", "check", "speed"))
    tested, timed = ({item.exercise for item in items} for items in (spec.tests, spec.speeds))
    for name, cell in [*checks.items(), *speeds.items()]:
        if name not in solutions:
            fail(lab.path, cell.line, f"{cell.kind}({name}), but no cell with a solution defines {name}; define it before")
        if cell.kind == "speed" and name not in timed:
            fail(lab.path, cell.line, f'{name} has no speed target; write one with @speed("{name}", ...) in {VISIBLE}')
    for name, cell in solutions.items():
        if name not in tested:
            fail(lab.path, cell.line, f'{name} has no tests; write one with @exercise("{name}", points=...) in {VISIBLE}')
        if name not in checks:
            fail(lab.path, cell.line, f"{name} is never checked; add a cell with check({name}) after it")
        if name in timed and name not in speeds:
            fail(lab.path, cell.line, f"{name} has a speed target and no cell times it; add one with speed({name})")
    for item, path, line in _declared(lab, spec):
        if item.exercise not in solutions:
            fail(path, line, f"{item.name} is about {item.exercise}, which no cell of {lab.path.name} defines; "
                             "correct one of them")
    for mistake in spec.mistakes:
        where = place(mistake.function)
        if mistake.caught_by not in {item.name for item in (*spec.tests, *spec.speeds)}:
            fail(*where, f"{mistake.name} is caught by {mistake.caught_by}, but there is no such test; correct the name")
        if not mistake.hint:
            fail(*where, f"{mistake.name} has no docstring; write there what the student should read")
        if mistake.exercise not in {probe.exercise for probe in spec.probes}:
            fail(*where, f"{mistake.exercise} has mistakes but no probe; "
                         f'write one with @probe("{mistake.exercise}") in {VISIBLE}')


def _declared(lab: LabSource, spec: Specification) -> Iterator[tuple[Any, Path, int]]:
    for test in spec.tests:
        yield test, lab.folder / (HIDDEN if test.hidden else VISIBLE), test.line
    for item, function in [*((p, p.run) for p in spec.probes), *((s, s.baseline) for s in spec.speeds),
                           *((m, m.function) for m in spec.mistakes)]:
        yield item, *place(function)


def place(function: Callable) -> tuple[Path, int]:
    """File and line of a function that an author wrote."""
    code = inspect.unwrap(function).__code__
    return Path(code.co_filename), code.co_firstlineno


# ---------------------------------------------------------------- the reference

def judged_cells(lab: LabSource) -> list[Cell]:
    """The code cells that grading executes, in order; `cell.id` is the grade id."""
    return lab.of_kind("setup", "solution", "given")


def reference_namespace(lab: LabSource) -> dict[str, Any]:
    """Everything that the lab's own cells define. Raises SpecError with the script's line if one of them fails."""
    # A module of its own: dataclasses and Triton look their definitions up in sys.modules.
    module = ModuleType(f"trainfast_reference_{lab.folder.name}")
    sys.modules[module.__name__] = module
    prepare_triton()
    with judged():
        for cell in judged_cells(lab):
            filename = f"<{lab.folder.name}/{cell.id}/{hashlib.sha256(cell.source.encode()).hexdigest()[:8]}>"
            try:
                execute(cell.source, filename, vars(module))
            except Exception as error:
                inside = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == filename]
                fail(lab.path, cell.line + (inside[-1] if inside else 1) - 1,
                     f"the reference does not run: {type(error).__name__}: {error}")
    return vars(module)


def execute(source: str, filename: str, namespace: dict[str, Any]) -> None:
    """Run a cell's source. Tracebacks and Triton's compiler find its lines under `filename`."""
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    exec(compile(source, filename, "exec", dont_inherit=True), namespace)
