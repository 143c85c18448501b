"""What a worker does: judge one submission. A worker is a process of pool.py here, or of a Dask cluster (cluster.py)."""
from __future__ import annotations

import traceback
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """One submission to judge: all of it, or some exercises only."""
    root: Path
    lab: str
    student: str
    path: Path
    exercises: tuple[str, ...] | None = None
    speed: bool = True
    require_isolation: bool = False
    gpu: bool = False   # a cluster sends it to a worker that has one


def work(job: Job) -> dict | str:
    """The verdict as a dict, or in words why this one could not be judged, which is not the submission's fault.

    Raises SandboxError and SpecError: they concern every submission.
    """
    lab = lab_of(job.root, job.lab)
    server_for(lab, job.require_isolation)
    lab.specification, lab.recordings, lab.reference
    try:
        return grade_one(job)
    except Exception as error:
        traceback.print_exc()
        return f"could not be judged ({type(error).__name__}: {error})"


def grade_one(job: Job) -> dict:
    """Judge one submission in this process's own fork server. Never raises for what a submission does."""
    from autograder.submission import Unreadable
    lab = lab_of(job.root, job.lab)
    try:
        repaired = lab.repaired(job.path)
    except Unreadable as error:
        return not_judged(job, str(error), server_for(lab, job.require_isolation).isolation)
    return grade_repaired(lab, job.student, repaired, require_isolation=job.require_isolation, speed=job.speed,
                          exercises=None if job.exercises is None else list(job.exercises))


def grade_repaired(lab, student: str, repaired, *, require_isolation: bool = False, **options) -> dict:
    """Judge a repaired notebook in this process's own fork server."""
    from autograder.judge import judge
    verdict = judge(lab, server_for(lab, require_isolation), student, repaired.cells, **options)
    verdict.notes = repaired.notes
    return verdict.to_dict()


def not_judged(job: Job, reason: str, isolation: str = "") -> dict:
    """The verdict that says for every test why there is none."""
    from autograder.judge import Verdict
    verdict = Verdict(job.student, job.lab, error=reason, isolation=isolation)
    verdict.tests = [t for t in unjudged(lab_of(job.root, job.lab), reason) if job.exercises is None or t.exercise in job.exercises]
    return verdict.to_dict()


def unjudged(lab, reason: str) -> list:
    """Every test failed for one reason: there is nothing to run."""
    from course.spec.run import Result
    spec = lab.specification
    return [Result(t.name, t.exercise, 0, t.points, "error", reason) for t in [*spec.tests, *spec.speeds]]


@lru_cache(maxsize=None)
def lab_of(root: Path, name: str):
    """The lab as the judge sees it, loaded once a process."""
    from autograder.judge import Lab
    return Lab(root, name)


def server_for(lab, require_isolation: bool = False):
    """This process's fork server for such a lab, started when it is first needed."""
    return _server(lab.released_folder.parent, _wants_gpu(lab.name), require_isolation)


@lru_cache(maxsize=None)
def _server(labs: Path, gpu: bool, require_isolation: bool):
    import atexit

    from autograder.sandbox import ForkServer
    from course.spec.run import warm_up
    server = ForkServer(gpu=gpu, require_isolation=require_isolation, labs=labs)
    atexit.register(server.close)
    warm_up()
    return server


def _wants_gpu(lab: str) -> bool:
    """Its devices are shown to submissions only where the syllabus says that the lab has a use for them."""
    import torch

    from course import syllabus
    return torch.cuda.is_available() and any("GPU" in entry.device for entry in syllabus.load().labs if entry.name == lab)
