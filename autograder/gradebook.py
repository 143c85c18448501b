"""Verdicts into nbgrader: the annotated notebook that the formgrader and the feedback show, and the gradebook.

`annotate` puts each exercise's messages and score into its check cell; nbgrader's own preprocessors do the rest.
"""
from __future__ import annotations

import contextlib
import html
import logging
import os
import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.preprocessors import SaveAutoGrades, SaveCells

from autograder.results import write_atomically
from autograder.submission import grade_id
from course.spec.messages import statement


def put_environment_on_path() -> None:
    """nbgrader's gradebook shells out to alembic, which is in the environment's bin even when that is not activated."""
    here = str(Path(sys.executable).parent)
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = here + os.pathsep + os.environ.get("PATH", "")


@contextlib.contextmanager
def quiet_alembic():
    """A new gradebook announces every migration; only errors are of interest."""
    logger = logging.getLogger("alembic")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def cells_of(result: dict) -> dict[str, list[dict]]:
    """The verdicts by grade cell: check-EXERCISE has its tests, speed-EXERCISE its speed targets."""
    cells: dict[str, list[dict]] = {}
    for test in result["tests"]:
        kind = "speed" if test["name"].startswith("speed_") else "check"
        cells.setdefault(f"{kind}-{test['exercise']}", []).append(test)
    return cells


class SaveVerdicts(SaveAutoGrades):
    """As nbgrader saves its own scores, but those of the verdicts: manual marks and comments stay."""

    def _add_score(self, cell: NotebookNode, resources: dict) -> None:
        score = resources["trainfast_scores"].get(grade_id(cell), "not judged")
        if score == "not judged":
            return super()._add_score(cell, resources)
        grade = self.gradebook.find_grade(grade_id(cell), self.notebook_id, self.assignment_id, self.student_id)
        grade.auto_score = score
        grade.needs_manual_grade = score is None or grade.manual_score is not None
        self.gradebook.db.commit()


class GradebookWriter:
    """The one writer of a course's gradebook. Use as a context manager."""

    def __init__(self, database: Path, autograded: Path, lab_name: str, instructor: NotebookNode):
        put_environment_on_path()
        self.url = f"sqlite:///{Path(database).resolve()}"
        self.autograded, self.lab = Path(autograded), lab_name
        self.topic = lab_name.split("_", 1)[1]
        with quiet_alembic(), Gradebook(self.url) as book:
            book.update_or_create_assignment(lab_name)
        SaveCells().preprocess(nbformat.from_dict(instructor), self._resources(""))

    def _resources(self, student: str) -> dict:
        return {"nbgrader": {"assignment": self.lab, "notebook": self.topic, "student": student, "db_url": self.url}}

    def save(self, result: dict, repaired: NotebookNode) -> None:
        """Scores into the gradebook, and the annotated notebook into autograded/STUDENT/LAB/."""
        student = result["student"]
        with Gradebook(self.url) as book:
            book.update_or_create_student(student)
            book.update_or_create_submission(self.lab, student)
        notebook = annotate(repaired, result)
        scores = {cell: _score(tests) for cell, tests in cells_of(result).items()}
        SaveVerdicts().preprocess(notebook, {**self._resources(student), "trainfast_scores": scores})
        path = self.autograded / student / self.lab / f"{self.topic}.ipynb"
        write_atomically(path, nbformat.writes(notebook).encode())


def _score(tests: list[dict]) -> float | None:
    """Points earned; None where a person has to look, because nothing could be measured."""
    judged = [t for t in tests if t["status"] not in ("deferred", "inconclusive")]
    return sum(t["points"] for t in judged) if judged else None


def annotate(notebook: NotebookNode, result: dict) -> NotebookNode:
    """Put the verdicts into the outputs of the check and speed cells."""
    verdicts = cells_of(result)
    for cell in notebook.cells:
        tests = verdicts.get(grade_id(cell))
        if tests is not None and cell.cell_type == "code":
            cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": as_html(tests), "text/plain": as_text(tests)})]
    return notebook


def as_text(tests: list[dict]) -> str:
    return "\n".join(f"[{t['status']}] {t['points']:g} of {t['max_points']:g}: {statement(t['name'])}"
                     + (f"\n{t['message']}" if t["message"] else "") for t in tests)


def as_html(tests: list[dict]) -> str:
    """A line a test, and the message of each one that is not passed."""
    rows = []
    for t in tests:
        words = f"<b>{html.escape(t['status'])}</b> &middot; {t['points']:g} of {t['max_points']:g} &middot; {html.escape(statement(t['name']))}"
        message = f"<pre style='margin:0 0 4px 1.5em;white-space:pre-wrap'>{html.escape(t['message'])}</pre>" if t["message"] else ""
        rows.append(f"<div>{words}{message}</div>")
    return "".join(rows)


def save_class(root: Path, lab_name: str, submissions: list, results: list[dict], out: Path, progress=lambda: None) -> None:
    """Every result into `out`/gradebook.db and `out`/autograded/. What cannot be read as a notebook is shown as blank."""
    from autograder.judge import Lab
    from autograder.repair import repair
    from autograder.submission import Unreadable
    lab = Lab(root, lab_name)
    writer = GradebookWriter(Path(out) / "gradebook.db", Path(out) / "autograded", lab_name, lab.released)
    for submission, result in zip(submissions, results):
        try:
            notebook = lab.repaired(submission.path).notebook
        except Unreadable:
            notebook = repair(lab.released, lab.released).notebook
        writer.save(result, notebook)
        progress()
