"""Judge one submission: the trusted side, from a list of cells to a list of verdicts."""
from __future__ import annotations

import secrets
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from autograder import timing
from autograder.remote import Remote
from autograder.repair import Repaired, repair
from autograder.sandbox import ForkServer
from autograder.source import load_lab_source, reference_namespace
from autograder.submission import CodeCell, Unreadable, read_notebook
from course.device import slug
from course.spec.load import PROBES, Specification, load
from course.spec.recordings import Recordings, load_recordings
from course.spec.run import Result, run
from course.spec.student import Local, Student


class Lab:
    """All that the judge knows of a lab: released notebook, full specification, recordings, reference."""

    def __init__(self, root: Path, name: str):
        self.name, self.folder, self.released_folder = name, root / "solutions" / name, root / "labs" / name
        self.topic = name.split("_", 1)[1]

    @cached_property
    def specification(self) -> Specification:
        return load(self.folder, hidden=True)

    @cached_property
    def recordings(self) -> Recordings:
        return load_recordings(self.released_folder / PROBES)

    @cached_property
    def reference(self) -> Student:
        return Student(Local(reference_namespace(load_lab_source(self.folder))))

    @cached_property
    def released(self):
        return read_notebook(self.released_folder / f"{self.topic}.ipynb")

    def repaired(self, notebook_path: Path) -> Repaired:
        """A submission in the released notebook's form. Raises submission.Unreadable, and nothing else."""
        try:
            return repair(read_notebook(notebook_path), self.released)
        except Unreadable:
            raise
        except Exception as error:  # whatever it is, the class goes on
            raise Unreadable(f"{Path(notebook_path).name} could not be repaired ({type(error).__name__}: {error}); "
                             "that is the grader's fault, please report it.") from error

    def cells(self, notebook_path: Path) -> list[CodeCell]:
        """The code of a submission that grading executes. Raises submission.Unreadable."""
        return self.repaired(notebook_path).cells


@dataclass
class Verdict:
    """One submission's results, as they are written to JSON. Deferred tests count in neither score nor max_score."""
    student: str
    lab: str
    tests: list[Result] = field(default_factory=list)
    error: str = ""             # why nothing could be judged at all
    notes: list[str] = field(default_factory=list)  # what was repaired
    device: str = field(default_factory=slug)
    isolation: str = ""
    seconds: float = 0.0
    seed: int = 0
    peak_bytes: int = 0

    @property
    def score(self) -> float:
        return sum(t.points for t in self.tests if t.status != "deferred")

    @property
    def max_score(self) -> float:
        return sum(t.max_points for t in self.tests if t.status != "deferred")

    def to_dict(self) -> dict:
        return {"student": self.student, "lab": self.lab, "score": self.score, "max_score": self.max_score,
                "error": self.error, "notes": self.notes, "tests": [t.to_dict() for t in self.tests], "device": self.device,
                "isolation": self.isolation, "seconds": round(self.seconds, 3), "seed": self.seed,
                "peak_bytes": self.peak_bytes}


def judge(lab: Lab, server: ForkServer, student: str, cells: list[CodeCell], *, seed: int | None = None,
          exercises: list[str] | None = None, speed: bool = True, stop_early: bool = False) -> Verdict:
    """Run the specification, and with `speed` the speed targets, against cells in a process of their own."""
    seed = secrets.randbits(31) if seed is None else seed
    verdict = Verdict(student, lab.name, isolation=server.isolation, seed=seed)
    start = time.perf_counter()
    remote = Remote(server, [cell.source for cell in cells], seed)
    try:
        verdict.tests = run(lab.specification, Student(remote), seed=seed, recordings=lab.recordings,
                            exercises=exercises, reference=lab.reference, stop_early=stop_early)
        explain_missing(verdict.tests, cells, remote.cell_errors)
        if speed:
            for target in lab.specification.speeds:
                if exercises is None or target.exercise in exercises:
                    verdict.tests.append(timing.judge_speed(lab, server, remote, target, verdict.tests))
    finally:
        remote.close()
    for result in verdict.tests:
        result.message = printable(result.message)
    verdict.seconds, verdict.peak_bytes = time.perf_counter() - start, remote.peak_bytes
    return verdict


def printable(text: str) -> str:
    """Without half characters, which no file could hold, and codes that move a terminal's cursor or turn the text round."""
    return "".join(c if c.isprintable() or c == "\n" else " " if c.isspace() else "\ufffd" for c in text)


def explain_missing(results: list[Result], cells: list[CodeCell], errors: dict[int, str]) -> None:
    """Where a function is missing because its cell failed, say how the cell failed."""
    for index, error in errors.items():
        for result in results:
            if cells[index].name == result.exercise and result.status not in ("passed", "deferred"):
                result.status = "timeout" if "did not end" in error else "error"
                result.message = f"The cell that defines {result.exercise} {_verb(error)}"
                result.mistake = ""


def _verb(error: str) -> str:
    return f"{error}." if error.startswith(("did not", "ended")) else f"raised {error}"
