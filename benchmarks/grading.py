"""How fast is grading? The same class graded by this project, by stock nbgrader, and in one warm process.

    python benchmarks/grading.py                 40 submissions of lab 11; the table
    python benchmarks/grading.py --class 300     a whole class with its timing jobs, against an estimate made beforehand

Stock nbgrader executes whole notebooks, experiments included; so it is also measured on notebooks without them. Both
stock runs use a sample of the class, since they take minutes each. Beside the wall clock stands the processors' time,
which says more where other programs run as well.
"""
from __future__ import annotations

import argparse
import copy
import json
import os
import random
import resource
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
LAB = "11_saddle_points"
REPEATED = 0.25     # of the time: too few of sixteen submissions are timed twice to estimate it


class Cost(NamedTuple):
    """Seconds a submission."""
    wall: float
    cpu: float      # of this process and of all that it has started and seen end


def cost(submissions: int, work: Callable[[], object]) -> Cost:
    def cpu() -> float:
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
    begin, used = time.perf_counter(), cpu()
    work()
    return Cost((time.perf_counter() - begin) / submissions, (cpu() - used) / submissions)


def make_class(lab, size: int, folder: Path, seed: int = 0) -> Path:
    """`size` submissions: each makes up to three of the known mistakes, one in ten leaves half unwritten."""
    from autograder.demo import fill, mistake_source, reference_sources, write_class
    draw = random.Random(seed)
    reference = reference_sources(lab)
    names = [m.name for m in lab.specification.mistakes]
    notebooks = {}
    for number in range(size):
        sources = dict(reference)
        for name in draw.sample(names, draw.randrange(4)):
            exercise, source = mistake_source(lab, name)
            sources[exercise] = source
        if draw.random() < 0.1:
            sources = {name: sources[name] for name in list(sources)[:len(sources) // 2]}
        notebooks[f"student_{number:03}"] = fill(lab.released, sources)
    return write_class(folder, notebooks, lab)


def ours(submissions: list, out: Path, *, speed: bool, jobs: int = 0) -> list[float]:
    """Wall seconds until each of the class was graded, start of the workers included; the last is for the whole class."""
    from autograder.grade import grade
    start, ends = time.perf_counter(), []
    with Progress(transient=True) as bar:
        task = bar.add_task("grading", total=len(submissions))

        def one_more(_) -> None:
            bar.advance(task)
            ends.append(time.perf_counter() - start)
        grade(LAB, submissions, out, speed=speed, jobs=jobs, root=ROOT, progress=one_more)
    return [*ends[:-1], time.perf_counter() - start]


def warm_process(lab, submissions: list) -> Cost:
    """The same tests in this very process, without any isolation: what checking itself costs."""
    from course.spec.run import run, warm_up
    from course.spec.student import Local, Student
    os.environ["TRAINFAST_JUDGED"] = "1"
    warm_up()
    lab.reference, lab.recordings, lab.specification

    def check_all() -> None:
        for submission in submissions:
            namespace: dict = {"__name__": "__main__"}
            for cell in lab.cells(submission.path):
                try:
                    exec(compile(cell.source, "<cell>", "exec"), namespace)
                except Exception:
                    pass
            run(lab.specification, Student(Local(namespace)), seed=secrets.randbits(31), recordings=lab.recordings, reference=lab.reference)
    return cost(len(submissions), check_all)


def stock(lab, submitted: Path, sample: int, folder: Path, *, experiments: bool) -> Cost:
    """nbgrader's own autograde, as it comes, over the first `sample` submissions."""
    import nbformat
    course = folder / ("stock" if experiments else "stock_without_experiments")
    topic = lab.topic
    released = strip(lab.released, experiments)
    for target, notebook in [("source", released)]:
        (course / target / LAB).mkdir(parents=True)
        nbformat.write(notebook, course / target / LAB / f"{topic}.ipynb")
    for path in sorted(submitted.glob(f"*/{LAB}/{topic}.ipynb"))[:sample]:
        place = course / "submitted" / path.parent.parent.name / LAB
        place.mkdir(parents=True)
        nbformat.write(strip(nbformat.read(path, as_version=4), experiments), place / f"{topic}.ipynb")
    # Students' checks need the visible tests; they find them through the installed course.
    (course / "nbgrader_config.py").write_text("c = get_config()\nc.CourseDirectory.course_id = 'stock'\nc.ExecutePreprocessor.timeout = 600\n"
                                               "c.Execute.timeout = 600\nc.ClearSolutions.enforce_metadata = False\n")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment.pop("TRAINFAST_JUDGED", None)
    run = lambda *command: subprocess.run([sys.executable, "-m", "nbgrader", *command, LAB], cwd=course, env=environment, capture_output=True, text=True)
    made = run("generate_assignment", "--create")
    if made.returncode:
        raise SystemExit(f"nbgrader generate_assignment failed:\n{made.stderr[-2000:]}")
    return cost(sample, lambda: run("autograde", "--create"))


def strip(notebook, experiments: bool):
    """The notebook, without its experiments if so wanted."""
    notebook = copy.deepcopy(notebook)
    if not experiments:
        notebook.cells = [c for c in notebook.cells if "experiment" not in c.metadata.get("tags", [])]
    return notebook


def compare(size: int, sample: int, json_file: Path | None) -> None:
    from autograder.grade import find_submissions, physical_cores
    from autograder.judge import Lab
    lab = Lab(ROOT, LAB)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        submitted = make_class(lab, size, folder)
        submissions = find_submissions(LAB, [submitted])
        mine = cost(size, lambda: ours(submissions, folder / "results", speed=False))
        one = cost(size, lambda: ours(submissions, folder / "results_one", speed=False, jobs=1))
        warm = warm_process(lab, submissions)
        bare = stock(lab, submitted, sample, folder, experiments=False)
        full = stock(lab, submitted, 1, folder, experiments=True)
    rows = [("autograder grade, all cores", mine), ("autograder grade, one at a time", one),
            ("the same tests in one warm process, nothing isolated", warm),
            (f"stock nbgrader autograde ({sample} of the class), experiments taken out", bare),
            ("stock nbgrader autograde (1 of the class), whole notebook", full)]
    table = Table(title=f"{size} submissions of {LAB}, correctness, {physical_cores()} cores", title_justify="left")
    for column in ("", "seconds a submission", "of the processors", "times faster than stock"):
        table.add_column(column, justify="left" if not column else "right")
    for words, seconds in rows:
        table.add_row(words, f"{seconds.wall:.2f}", f"{seconds.cpu:.2f}", f"{full.wall / seconds.wall:.1f}")
    console = Console()
    console.print(table)
    console.print(f"Overhead over the warm process: {mine.wall - warm.wall:.2f} s a submission on all cores, {one.wall - warm.wall:.2f} s "
                  "one at a time (wanted: at most 0.5).")
    console.print(f"Faster than stock: {full.wall / mine.wall:.1f} times (wanted: at least 10); than stock without experiments: "
                  f"{bare.wall / mine.wall:.1f} times.")
    if json_file:
        json_file.write_text(json.dumps({words: seconds._asdict() for words, seconds in rows}, indent=1) + "\n")


def whole_class(size: int) -> None:
    """Predict from the first sixteen submissions, then grade all, with speed targets."""
    from autograder.grade import find_submissions
    from autograder.judge import Lab
    lab, console = Lab(ROOT, LAB), Console()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        submissions = find_submissions(LAB, [make_class(lab, size, folder)])
        few = ours(submissions[:16], folder / "few", speed=True)
        each = (few[-1] - few[1]) / (len(few) - 2)      # without the start of the workers
        estimate = few[1] + each * (size - 2)
        budget = (1 + REPEATED) * estimate
        console.print(f"Estimate for {size} submissions: {estimate / 60:.1f} minutes ({each:.2f} s each). Budget, with {REPEATED:.0%} more for "
                      f"timings that are inconclusive and are repeated alone at the end: {budget / 60:.1f} minutes.")
        took = ours(submissions, folder / "results", speed=True)[-1]
        console.print(f"It took {took / 60:.1f} minutes ({took / size:.2f} s each), {took / budget:.0%} of the budget.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--class", dest="size", type=int, default=0, help="grade a class of this size with its timing jobs")
    parser.add_argument("--submissions", type=int, default=40)
    parser.add_argument("--stock", type=int, default=3, help="submissions that stock nbgrader grades")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    if arguments.size:
        whole_class(arguments.size)
    else:
        compare(arguments.submissions, arguments.stock, arguments.json)
