"""`autograder grade`: a class of submissions, in parallel, into results/LAB/STUDENT.json, a table and the gradebook."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

from autograder.results import read_json, write_json

ROOT = Path(__file__).resolve().parent.parent


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


def grade(lab: str, submissions: list[Submission], out: Path, *, jobs: int = 0, regrade: bool = False, speed: bool = True,
          exercises: list[str] | None = None, root: Path = ROOT, progress: Callable[[dict], None] = lambda result: None) -> list[dict]:
    """Judge every submission and save each result as soon as it is there; results that exist are kept.

    Returns the results as dicts, in the submissions' order. Raises CannotWrite.
    """
    results: dict[str, dict] = {}
    stamp = specification_stamp(root, lab)
    todo = []
    for submission in submissions:
        kept = None if regrade else read_json(result_path(out, lab, submission.student))
        if kept is not None and kept.get("stamp") == stamp + file_stamp(submission.path):
            results[submission.student] = kept
            progress(kept)
        else:
            todo.append(submission)
    if todo:
        workers = min(jobs or physical_cores(), len(todo))
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures = {pool.submit(grade_one, root, lab, s.student, s.path, speed, exercises): s for s in todo}
            for future in as_completed(futures):
                submission, result = futures[future], future.result()
                result["stamp"] = stamp + file_stamp(submission.path)
                write_json(result_path(out, lab, submission.student), result)
                results[submission.student] = result
                progress(result)
    return [results[s.student] for s in submissions]


def grade_one(root: Path, lab_name: str, student: str, path: Path, speed: bool = True, exercises: list[str] | None = None) -> dict:
    """Judge one submission in this process's own fork server. Never raises for what a submission does."""
    from autograder.judge import Verdict, judge
    from autograder.submission import Unreadable
    lab, server = _lab(root, lab_name), _server()
    try:
        repaired = lab.repaired(path)
    except Unreadable as error:
        verdict = Verdict(student, lab_name, error=str(error), isolation=server.isolation)
        verdict.tests = unjudged(lab, str(error))
        return verdict.to_dict()
    verdict = judge(lab, server, student, repaired.cells, speed=speed, exercises=exercises)
    verdict.notes = repaired.notes
    return verdict.to_dict()


def unjudged(lab, reason: str) -> list:
    """Every test failed for one reason: there is nothing to run."""
    from course.spec.run import Result
    spec = lab.specification
    return [Result(t.name, t.exercise, 0, t.points, "error", reason) for t in [*spec.tests, *spec.speeds]]


@lru_cache(maxsize=None)
def _lab(root: Path, name: str):
    from autograder.judge import Lab
    return Lab(root, name)


@lru_cache(maxsize=None)
def _server():
    import atexit

    from autograder.sandbox import ForkServer
    from course.spec.run import warm_up
    server = ForkServer()
    atexit.register(server.close)
    warm_up()
    return server


def result_path(out: Path, lab: str, student: str) -> Path:
    return Path(out) / lab / f"{student}.json"


def file_stamp(path: Path) -> str:
    """Changes when the file changes; what cannot be read has one too, and its own line in the report."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        return type(error).__name__


def specification_stamp(root: Path, lab: str) -> str:
    """Changes when the lab's tests, reference or mistakes change: results from before are not kept."""
    total = hashlib.sha256()
    for file in sorted((root / "solutions" / lab).glob("*.py")):
        total.update(file.read_bytes())
    return total.hexdigest()[:16]


def physical_cores() -> int:
    import psutil
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
