"""Verdicts into nbgrader: the annotated notebook that the formgrader and the feedback show, and the gradebook.

`annotate` puts each exercise's messages and scores into its check cell; nbgrader's own preprocessors do the rest.
"""
from __future__ import annotations

import contextlib
import html
import logging
import os
import sys
import warnings
from datetime import datetime
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader import utils
from nbgrader.api import Gradebook
from nbgrader.coursedir import CourseDirectory
from nbgrader.preprocessors import AssignLatePenalties, SaveAutoGrades, SaveCells
from sqlalchemy.exc import SAWarning
from traitlets.config import Config, ConfigFileNotFound, PyFileConfigLoader

from autograder.grade import ROOT
from autograder.results import write_atomically
from autograder.submission import grade_id
from course.spec.messages import statement
from course.verdict import BAD, GOOD, MARK, OPEN, RECEIPT

CONFIG = "nbgrader_config.py"
SCORES = "trainfast_scores"     # in nbgrader's resources: points by grade cell
UNMEASURED = ("deferred", "inconclusive")


class GradebookError(RuntimeError):
    """The gradebook does not take these results; the text says why and what to do."""
    for_people = True


# ---------------------------------------------------------------- the gradebook

def save_class(root: Path, lab_name: str, submissions: list, results: list[dict], out: Path, progress=lambda: None) -> None:
    """Every result into `out`'s gradebook.db and autograded/; with its source/ that makes `out` a course for nbgrader.

    What cannot be read as a notebook is shown as blank. Raises GradebookError.
    """
    from autograder.judge import Lab
    from autograder.repair import repair
    from autograder.submission import Unreadable
    lab = Lab(root, lab_name)
    make_course(root, lab_name, Path(out).resolve(), {submission.path.resolve() for submission in submissions})
    writer = GradebookWriter(Path(out), lab_name, lab.released)
    for submission, result in zip(submissions, results):
        try:
            notebook = lab.repaired(submission.path).notebook
        except Unreadable:
            notebook = repair(lab.released, lab.released).notebook
        writer.save(result, notebook, submission.path)
        progress()


def make_course(root: Path, lab_name: str, out: Path, submitted: set[Path]) -> None:
    """What the formgrader needs in `out` besides the gradebook: settings, the lab's source, and where submissions are."""
    from autograder.build import build_source
    if not (out / "source" / lab_name).exists():
        build_source(root / "solutions" / lab_name, out / "source", root)
    if (out / CONFIG).exists():
        return
    theirs = next(folder for folder in (root, ROOT) if (folder / CONFIG).is_file())
    lines = [f'load_subconfig("{CONFIG}", path={str(theirs.resolve())!r})  # the course\'s own, and below what differs']
    trees = {path.parents[2] for path in submitted if path.parent.name == lab_name}  # nbgrader's STUDENT/LAB/
    if len(trees) == 1 and (tree := trees.pop()) != out / "submitted":
        lines.append(f"c.CourseDirectory.submitted_directory = {str(tree)!r}")
    write_atomically(out / CONFIG, ("\n".join(lines) + "\n").encode())


class GradebookWriter:
    """The one writer of the gradebook in the folder `out`, with the settings of its nbgrader_config.py."""

    def __init__(self, out: Path, lab_name: str, released: NotebookNode):
        put_environment_on_path()
        try:
            self.config = PyFileConfigLoader(CONFIG, path=str(Path(out).resolve())).load_config()
        except ConfigFileNotFound:
            self.config = Config()
        self.course = CourseDirectory(config=self.config, root=str(Path(out).resolve()))
        self.lab, self.topic = lab_name, lab_name.split("_", 1)[1]
        self.log = logging.getLogger("autograder.gradebook")
        with quiet(self.log), self._open() as book:
            book.update_or_create_assignment(self.lab)
            try:
                SaveCells().preprocess(nbformat.from_dict(released), self._resources(""))
            except RuntimeError as error:  # graded cells cannot come or go once there are submissions
                raise GradebookError(f"{self.course.db_url.removeprefix('sqlite:///')} has submissions of {self.lab} from when "
                                     "it had other graded cells. Keep that gradebook, and grade into a new folder with --out.") from error

    def save(self, result: dict, repaired: NotebookNode, submitted: Path) -> None:
        """Scores and late penalty into the gradebook, and the annotated notebook into autograded/STUDENT/LAB/."""
        student, notebook = result["student"], annotate(repaired, result)
        folder = Path(self.course.format_path(self.course.autograded_directory, student, self.lab))
        time = submitted.parent / "timestamp.txt"   # in nbgrader's submitted/STUDENT/LAB/
        when = {"timestamp": stamp} if (stamp := _time_in(time)) else {}
        with quiet(self.log):
            with self._open() as book:
                book.update_or_create_student(student)
                book.update_or_create_submission(self.lab, student, **when)
            resources = {**self._resources(student), SCORES: scores_of(result)}
            for step in (SaveVerdicts(), AssignLatePenalties(config=self.config, log=self.log)):
                step.preprocess(notebook, resources)
        write_atomically(folder / f"{self.topic}.ipynb", (nbformat.writes(notebook) + "\n").encode())
        if when:  # by which nbgrader tells a newer submission
            write_atomically(folder / time.name, time.read_bytes())

    def _open(self) -> Gradebook:
        return Gradebook(self.course.db_url, self.course.course_id or "default_course")

    def _resources(self, student: str) -> dict:
        return {"nbgrader": {"assignment": self.lab, "notebook": self.topic, "student": student, "db_url": self.course.db_url}}


class SaveVerdicts(SaveAutoGrades):
    """As nbgrader saves its own scores, but those of the verdicts: manual marks and comments stay."""

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        names = resources["nbgrader"]
        self.notebook_id, self.assignment_id, self.student_id = names["notebook"], names["assignment"], names["student"]
        with Gradebook(names["db_url"]) as self.gradebook:
            session = self.gradebook.db
            commit, session.commit = session.commit, session.flush  # nbgrader would wait for the disk after every cell
            nb, resources = super(SaveAutoGrades, self).preprocess(nb, resources)
            commit()
        return nb, resources

    def _add_score(self, cell: NotebookNode, resources: dict) -> None:
        if utils.is_solution(cell):  # a written answer
            return super()._add_score(cell, resources)
        if grade_id(cell) not in resources[SCORES]:
            return  # not judged this time: as it was, where nbgrader would give full marks
        grade = self.gradebook.find_grade(grade_id(cell), self.notebook_id, self.assignment_id, self.student_id)
        grade.auto_score = resources[SCORES][grade_id(cell)]
        grade.needs_manual_grade = grade.auto_score is None or grade.manual_score is not None
        self.gradebook.db.commit()


def put_environment_on_path() -> None:
    """nbgrader's gradebook shells out to alembic, which is in the environment's bin even when that is not activated."""
    here = str(Path(sys.executable).parent)
    if here not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = here + os.pathsep + os.environ.get("PATH", "")


@contextlib.contextmanager
def quiet(*more: logging.Logger):
    """A new gradebook announces every migration, nbgrader's queries warn of sessions, and late penalties say each step."""
    loggers = [logging.getLogger("alembic"), *more]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _time_in(path: Path) -> datetime | None:
    try:
        return utils.parse_utc(path.read_text(encoding="utf-8").strip())
    except (OSError, ValueError, OverflowError):
        return None  # without a time, nothing is late


# ---------------------------------------------------------------- verdicts, cell by cell

def cells_of(result: dict) -> dict[str, list[dict]]:
    """The verdicts by grade cell: check-EXERCISE has its tests, speed-EXERCISE its speed targets."""
    cells: dict[str, list[dict]] = {}
    for test in result["tests"]:
        kind = "speed" if test["name"].startswith("speed_") else "check"
        cells.setdefault(f"{kind}-{test['exercise']}", []).append(test)
    return cells


def scores_of(result: dict) -> dict[str, float | None]:
    """Points by grade cell; None where a person has to look, because nothing could be measured."""
    scores, grader_failed = {}, result.get("stamp") == ""  # as grade.py marks what is not the submission's fault
    for cell, tests in cells_of(result).items():
        judged = [t["points"] for t in tests if t["status"] not in UNMEASURED and not grader_failed]
        scores[cell] = round(sum(judged), 6) if judged else None  # 0.4 + 0.2 + 0.2
    return scores


def annotate(notebook: NotebookNode, result: dict) -> NotebookNode:
    """Put the verdicts into the outputs of the check and speed cells, and what was repaired into the setup cell's."""
    verdicts, notes = cells_of(result), "; ".join(result.get("notes", []))
    remark = result["error"] or notes and f"Repaired before grading: {notes}."
    for cell in notebook.cells:
        tests = verdicts.get(grade_id(cell))
        if cell.cell_type == "raw":  # pages would show it as HTML, whatever a student wrote there
            cell.cell_type, cell.source = "markdown", _fenced(cell.source)
        elif cell.cell_type == "code" and tests is not None:
            cell.outputs = [new_output("display_data", {"text/html": as_html(tests), "text/plain": as_text(tests)}), *_receipts(cell)]
        elif cell.cell_type == "code" and remark and "setup" in cell.metadata.get("tags", []):
            cell.outputs.append(new_output("stream", name="stdout", text=f"{remark}\n"))
    return notebook


def _receipts(cell: NotebookNode) -> list[NotebookNode]:
    """The student's own measurements, shown as such."""
    found = [output.data for output in cell.outputs if RECEIPT in output.get("data", {})]
    return [new_output("display_data", {**data, "text/plain": f"Self-reported, on the student's own device:\n{data.get('text/plain', '')}"})
            for data in found]


def _fenced(source: str) -> str:
    fence = "`" * 3
    while fence in source:
        fence += "`"
    return f"{fence}\n{source}\n{fence}"


def lines_of(tests: list[dict]) -> list[tuple[str, str, str, str]]:
    """(status, points, what is tested, message) a test. What several tests say, a hint or an error, stands once."""
    lines, said = [], set()
    for t in tests:
        fact = statement(t["name"])
        message = t["message"].removeprefix(f"Not so: {fact}.").strip("\n")
        points = f"{t['points']:g} of {t['max_points']:g}" if t["max_points"] else "no points"  # deferred or optional
        lines.append((MARK.get(t["status"], t["status"]), points, fact, "" if message in said else message))
        said.add(message)
    return lines


def as_text(tests: list[dict]) -> str:
    return "\n".join(f"[{status}] {points}: {fact}" + (f"\n{message}" if message else "") for status, points, fact, message in lines_of(tests))


def as_html(tests: list[dict]) -> str:
    """A line a test, and under it the message of each one that is not passed, on light and dark pages."""
    rows = []
    for test, (status, points, fact, message) in zip(tests, lines_of(tests)):
        colour = GOOD if test["status"] == "passed" else OPEN if test["status"] in UNMEASURED else BAD
        rows.append(f"<div style='margin:3px 0'><b style='color:{colour}'>{html.escape(status)}</b> &middot; {points} &middot; {html.escape(fact)}"
                    + (f"<div style='border-left:3px solid {colour};margin:1px 0 5px;padding-left:.7em;white-space:pre-wrap;overflow-wrap:anywhere;"
                       f"font-family:monospace;font-size:.92em'>{html.escape(message)}</div>" if message else "") + "</div>")
    return f"<div style='line-height:1.4;margin-bottom:10px'>{''.join(rows)}</div>"
