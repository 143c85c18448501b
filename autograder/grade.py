"""`autograder grade`: a class of submissions, in parallel, into results/LAB/STUDENT.json; a table and the gradebook follow."""
from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from autograder.jobs import Job
from autograder.ledger import Ledger, specification_stamp

ROOT = Path(__file__).resolve().parent.parent
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
    blank = [Job(root, lab, s.student, s.path, speed=speed, require_isolation=require_isolation) for s in submissions]
    ledger = Ledger(out / lab, blank, specification_stamp(root, lab), regrade, tuple(exercises or ()))
    todo = ledger.unfinished()
    for result in ledger.results.values():
        progress(result)
    with _workers(scheduler, min(jobs or physical_cores(), len(todo) or 1)) as workers:
        for job, answer in workers.run(todo):
            progress(ledger.save(job, answer))
        for status, look in LOOKS.items():
            if look == "on a GPU" and not workers.gpus:
                continue
            due = [replace(job, gpu=bool(workers.gpus)) for job in ledger.due(status, look)]
            for job, answer in workers.run(due, at_a_time=1 if look == "alone" else None):
                ledger.save_look(job, answer, status, look)
    ledger.close()
    return [ledger.results[s.student] for s in submissions]


def _workers(scheduler: str, here: int):
    if scheduler:
        from autograder.cluster import Cluster
        return Cluster(scheduler)
    from autograder.pool import Pool
    return Pool(here)


def physical_cores() -> int:
    import psutil
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
