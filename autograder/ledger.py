"""Which submissions are finished: the results on disk, what they were made from, and what is merged into them."""
from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from autograder.jobs import Job, not_judged
from autograder.results import read_json, write_json

STAMP = 16      # hexadecimal digits


class Ledger:
    """The results of one lab in `folder`, one file a student. `results` holds those known so far.

    A result is finished when its stamp says that it was made from these tests and this file; while something is judged
    anew, when it carries that regrading's id. `jobs` has a job for all of each submission.
    """

    def __init__(self, folder: Path, jobs: list[Job], tests: str, regrade: bool = False, exercises: tuple[str, ...] = ()):
        self.folder, self.jobs, self.exercises = Path(folder), jobs, exercises
        self.results: dict[str, dict] = {}
        self._kept: dict[str, dict] = {}    # into which exercises judged anew are merged
        self._stamps = {job.student: tests + file_stamp(job.path) + ("" if job.speed else " without speed") for job in jobs}
        self._faults = 0
        self._regrading = None
        if regrade or exercises:
            self._regrading = Regrading(folder, {"students": sorted(self._stamps), "exercises": list(exercises), "tests": tests})

    def unfinished(self) -> list[Job]:
        """What is left to do; the finished results are in `results` then."""
        todo = []
        for job in self.jobs:
            kept = {"stamp": "", "isolation": "", "error": "", **(read_json(self._path(job.student)) or {})}
            # The tests apart, is it still what was handed in, and was it judged as is wanted now?
            same = kept["stamp"][STAMP:] == self._stamps[job.student][STAMP:]
            same = same and not (job.require_isolation and kept["isolation"].startswith("not isolated"))
            if same and (kept.get("regrading") == self._regrading.id if self._regrading else kept["stamp"] == self._stamps[job.student]):
                self.results[job.student] = kept
            elif self.exercises and same and not kept["error"]:
                self._kept[job.student] = kept
                todo.append(replace(job, exercises=self.exercises))
            else:
                todo.append(job)
        return todo

    def save(self, job: Job, answer: dict | str) -> dict:
        """Write the result of a job of unfinished(). Where words say that it could not be judged, it is not finished."""
        marks = {"stamp": self._stamps[job.student], "looks": [], "regrading": self._regrading.id if self._regrading else ""}
        if isinstance(answer, str):
            self._faults += 1
            answer, marks = not_judged(job, answer), {"stamp": ""}
        elif job.exercises:  # the stamp stays: the tests of other exercises may have changed as well
            marks["stamp"] = self._kept[job.student]["stamp"]
        if job.exercises:
            answer = merge(self._kept[job.student], answer, lambda test: test["exercise"] in job.exercises)
        return self._write(job.student, {**answer, **marks})

    def due(self, status: str, look: str) -> list[Job]:
        """For the submissions with tests of this status, a second look at their exercises, unless that was taken."""
        jobs = []
        for job in self.jobs:
            result = self.results[job.student]
            exercises = {test["exercise"] for test in result["tests"] if test["status"] == status}
            if exercises and look not in result.get("looks", []):
                jobs.append(replace(job, exercises=tuple(sorted(exercises))))
        return jobs

    def save_look(self, job: Job, answer: dict | str, status: str, look: str) -> None:
        """Replace only the verdicts of this status; without an answer they stay, and the next run looks again."""
        if isinstance(answer, dict):
            before = self.results[job.student]
            names = {test["name"] for test in before["tests"] if test["status"] == status}
            after = merge(before, answer, lambda test: test["name"] in names)
            self._write(job.student, {**after, "looks": [*before.get("looks", []), look]})

    def close(self) -> None:
        """All is done."""
        if self._regrading and not self._faults:
            self._regrading.done()

    def _write(self, student: str, result: dict) -> dict:
        write_json(self._path(student), result)
        self.results[student] = result
        return result

    def _path(self, student: str) -> Path:
        return self.folder / f"{student}.json"


class Regrading:
    """A command that judges anew what has results already; after a kill, the same command goes on where it was.

    A result belongs to it when it carries its id, which stands in a file until everything is done.
    """

    def __init__(self, folder: Path, what: dict):
        self._file = Path(folder) / ".regrading"
        before = read_json(self._file) or {}
        self.id = before["id"] if before.get("what") == what else secrets.token_hex(8)
        write_json(self._file, {"id": self.id, "what": what})

    def done(self) -> None:
        self._file.unlink(missing_ok=True)


def merge(kept: dict, new: dict, stale: Callable[[dict], bool]) -> dict:
    """The kept result with those verdicts replaced that are stale, by the new ones of that kind."""
    fresh = [test for test in new["tests"] if stale(test)]
    at = next((i for i, test in enumerate(kept["tests"]) if stale(test)), len(kept["tests"]))
    tests = [test for test in kept["tests"][:at] if not stale(test)] + fresh + [test for test in kept["tests"][at:] if not stale(test)]
    counted = [test for test in tests if test["status"] != "deferred"]
    isolation = kept["isolation"] if kept["isolation"].startswith("not isolated") else new["isolation"]
    return {**kept, **{key: new[key] for key in ("error", "notes", "device")}, "isolation": isolation, "tests": tests,
            "score": sum(test["points"] for test in counted), "max_score": sum(test["max_points"] for test in counted),
            "seconds": round(kept["seconds"] + new["seconds"], 3), "peak_bytes": max(kept["peak_bytes"], new["peak_bytes"])}


def file_stamp(path: Path) -> str:
    """Changes when the file changes; what cannot be read has one too, and its own line in the report."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:STAMP]
    except OSError as error:
        return type(error).__name__


def specification_stamp(root: Path, lab: str) -> str:
    """Changes when the lab's code, tests or mistakes change: results from before are not kept. Its prose may change."""
    from autograder.source import judged_cells, load_lab_source
    from course.spec.load import HIDDEN, MISTAKES, VISIBLE
    folder = root / "solutions" / lab
    parts = [cell.source.encode() for cell in judged_cells(load_lab_source(folder))]
    parts += [(folder / name).read_bytes() for name in (VISIBLE, HIDDEN, MISTAKES) if (folder / name).is_file()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:STAMP]
