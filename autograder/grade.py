"""`autograder grade`: a class of submissions, in parallel, into results/LAB/STUDENT.json; a table and the gradebook follow."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from autograder.jobs import Job, grade_repaired, lab_of, not_judged, unjudged  # noqa: F401: nbgrader_plugin.py imports from here
from autograder.results import Regrading, merge, read_json, result_path, write_json

ROOT = Path(__file__).resolve().parent.parent
STAMP = 16      # hexadecimal digits
LOOKS = {"deferred": "on a GPU", "inconclusive": "alone"}   # what is tried once more when all others are done, and how


class NothingToGrade(Exception):
    """No submission was found where one was announced."""
    for_people = True


@dataclass(frozen=True)
class Submission:
    student: str
    path: Path


def find_submissions(lab: str, paths: Iterable[Path]) -> list[Submission]:
    """From notebooks, folders of notebooks, and nbgrader's submitted/STUDENT/LAB trees. Raises NothingToGrade."""
    topic = lab.split("_", 1)[1]
    found: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.is_file():
            here = [(path.stem, path)]
        elif path.is_dir():
            here = [(p.parent.parent.name, p) for p in sorted(path.glob(f"*/{lab}/{topic}.ipynb"))]
            here = here or [(p.stem, p) for p in sorted(path.glob("*.ipynb"))]
        else:
            raise NothingToGrade(f"{path}: no such file or folder.")
        if not here:
            raise NothingToGrade(f"{path} holds neither notebooks nor folders STUDENT/{lab}/{topic}.ipynb.")
        for student, file in here:
            if student in found and found[student] != file:
                raise NothingToGrade(f"Two submissions of {student}: {found[student]} and {file}. Give each student one name.")
            found[student] = file
    return [Submission(student, path.resolve()) for student, path in found.items()]


def only(students: Iterable[str], submissions: list[Submission]) -> list[Submission]:
    """The submissions of these students. Raises NothingToGrade for one who has none."""
    by_name = {submission.student: submission for submission in submissions}
    if unknown := [student for student in students if student not in by_name]:
        raise NothingToGrade(f"No submission of {', '.join(unknown)} is there; there are those of {', '.join(by_name)}.")
    return [by_name[student] for student in dict.fromkeys(students)]


def known_exercises(root: Path, lab: str, names: Iterable[str] | None) -> list[str]:
    """These names, if they are exercises of the lab. Raises NothingToGrade."""
    from autograder.source import load_lab_source
    there = [cell.name for cell in load_lab_source(root / "solutions" / lab).of_kind("solution")]
    if unknown := [name for name in names or [] if name not in there]:
        raise NothingToGrade(f"{lab} has no exercise {', '.join(unknown)}; it has {', '.join(there)}.")
    return list(names or [])


def grade(lab: str, submissions: list[Submission], out: Path, *, jobs: int = 0, regrade: bool = False, speed: bool = True,
          exercises: list[str] | None = None, root: Path = ROOT, require_isolation: bool = False, scheduler: str = "",
          progress: Callable[[dict], None] = lambda result: None) -> list[dict]:
    """Judge every submission and save each result as soon as it is there; results that exist are kept.

    `regrade` judges anew what has a result; `exercises` only these, and their verdicts replace those in the result.
    `scheduler` is the address of a Dask cluster. Returns the results as dicts, in the submissions' order.
    Raises CannotWrite, and SandboxError where isolation is required and cannot be had.
    """
    stamp, folder = specification_stamp(root, lab), Path(out) / lab
    stamps = {s.student: stamp + file_stamp(s.path) + ("" if speed else " without speed") for s in submissions}
    regrading = None
    if regrade or exercises:
        regrading = Regrading(folder, {"students": sorted(stamps), "exercises": exercises, "stamp": stamp})
    results, todo, faults = {}, [], []

    def save(job: Job, answer: dict | str, replaced: Callable[[dict], bool] | None = None, **marks) -> None:
        if isinstance(answer, str):  # not kept as finished: the next time it is judged again
            faults.append(job)
            answer, marks = not_judged(job, answer), {"stamp": ""}
        result = {**(merge(results[job.student], answer, replaced) if replaced else answer), **marks}
        write_json(result_path(out, lab, job.student), result)
        results[job.student] = result

    for s in submissions:
        kept = {"stamp": "", "isolation": "", "error": "", **(read_json(result_path(out, lab, s.student)) or {})}
        # What was handed in, and how much of it was judged, has not changed since then.
        same = kept["stamp"][STAMP:] == stamps[s.student][STAMP:]
        same = same and not (require_isolation and kept["isolation"].startswith("not isolated"))
        if same and (kept.get("regrading") == regrading.id if regrading else kept["stamp"] == stamps[s.student]):
            results[s.student] = kept
            progress(kept)
            continue
        part = exercises and same and not kept["error"]
        if part:
            results[s.student] = kept
        todo.append(Job(root, lab, s.student, s.path, tuple(exercises) if part else None, speed, require_isolation))

    with _workers(scheduler, min(jobs or physical_cores(), len(todo) or 1)) as workers:
        marks = {"looks": [], "regrading": regrading.id if regrading else ""}
        for job, answer in workers.run(todo):
            if job.exercises is None:
                save(job, answer, **marks, stamp=stamps[job.student])
            else:  # the stamp stays: what it says of the other exercises' tests may be out of date
                save(job, answer, lambda test: test["exercise"] in job.exercises, **marks)
            progress(results[job.student])
        for status, look in LOOKS.items():
            if look == "on a GPU" and not workers.gpus:
                continue
            due = {}
            for s in submissions:
                tests = [test for test in results[s.student]["tests"] if test["status"] == status]
                if tests and look not in results[s.student].get("looks", []):
                    named = tuple(sorted({test["exercise"] for test in tests}))
                    due[Job(root, lab, s.student, s.path, named, True, require_isolation, bool(workers.gpus))] = {test["name"] for test in tests}
            for job, answer in workers.run(due, at_a_time=1 if look == "alone" else None):
                if isinstance(answer, dict):
                    save(job, answer, lambda test: test["name"] in due[job], looks=[*results[job.student].get("looks", []), look])
    if regrading and not faults:
        regrading.done()
    return [results[s.student] for s in submissions]


def _workers(scheduler: str, here: int):
    if scheduler:
        from autograder.cluster import Cluster
        return Cluster(scheduler)
    from autograder.pool import Pool
    return Pool(here)


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


def physical_cores() -> int:
    import psutil
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
