"""Grades out of nbgrader's gradebook, with marks given by hand and late penalties: as CSV, and as Canvas imports them."""
from __future__ import annotations

import contextlib
import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from autograder.roster import Student

CANVAS = ("Student", "ID", "SIS User ID", "SIS Login ID", "Section")


class NoGrades(LookupError):
    """The gradebook cannot answer; the text says why."""
    for_people = True


@dataclass(frozen=True)
class Grade:
    """`score` after the penalty; `unmarked` is the number of answers that wait for a person."""
    student: str
    score: float
    penalty: float
    submitted: str
    unmarked: int


@dataclass(frozen=True)
class LabGrades:
    lab: str
    max_score: float
    by_student: dict[str, Grade]


@contextlib.contextmanager
def _open(database: Path):
    if not Path(database).is_file():
        raise NoGrades(f"{database}: there is no gradebook; autograder grade writes one.")
    from nbgrader.api import Gradebook

    from autograder.gradebook import put_environment_on_path, quiet
    put_environment_on_path()
    with quiet(), Gradebook(f"sqlite:///{Path(database).resolve()}", "") as book:  # a course named here would be made
        yield book


def graded_labs(database: Path) -> list[str]:
    """Those that have grades. Raises NoGrades."""
    with _open(database) as book:
        return sorted(assignment.name for assignment in book.assignments)


def read_grades(database: Path, lab: str) -> LabGrades:
    """What the gradebook says of a lab. Raises NoGrades."""
    from nbgrader.api import MissingEntry
    with _open(database) as book:
        try:
            assignment = book.find_assignment(lab)
        except MissingEntry:
            raise NoGrades(f"{database} has no grades of {lab}; grade it first.") from None
        grades, parts = {}, []
        for submission in assignment.submissions:
            marks = [grade for notebook in submission.notebooks for grade in notebook.grades]
            parts += marks
            penalty = submission.late_submission_penalty or 0.0
            grades[submission.student.id] = Grade(
                submission.student.id, max(0.0, submission.score - penalty), penalty, str(submission.timestamp or ""),
                sum(bool(mark.needs_manual_grade) for mark in marks if not _speed(mark)))
        # What could be measured for nobody is in nobody's score, and so not in the maximum.
        speeds = {mark.name: mark.max_score for mark in parts if _speed(mark)}
        measured = {mark.name for mark in parts if mark.auto_score is not None or mark.manual_score is not None}
        return LabGrades(lab, assignment.max_score - sum(most for name, most in speeds.items() if name not in measured), grades)


def _speed(mark) -> bool:
    return mark.name.startswith("speed-")


def as_csv(labs: Iterable[LabGrades], roster: dict[str, Student] | None = None) -> str:
    """A row for each student and lab. With a roster, those who handed in nothing have a row too."""
    rows = [("student", "name", "email", "lab", "score", "max_score", "late_penalty", "submitted", "waits_for_marking")]
    for lab in labs:
        for student in sorted({*lab.by_student, *(roster or {})}):
            known, grade = (roster or {}).get(student, Student(student)), lab.by_student.get(student)
            got = (_number(grade.score), _number(lab.max_score), _number(grade.penalty), grade.submitted, grade.unmarked) if grade \
                else ("", _number(lab.max_score), "", "", "")
            rows.append((student, known.name, known.email, lab.lab, *got))
    return _text(rows)


def as_canvas(lab: LabGrades, roster: dict[str, Student], assignment: str) -> tuple[str, list[str]]:
    """For Canvas's gradebook, and what a person must know. Who handed in nothing has an empty field: nothing changes.

    `assignment` is the column as Canvas exports it, "Saddle points (98765)"; without the id Canvas makes a new one.
    """
    known = [student for student in roster.values() if student.canvas_id or student.sis_user_id or student.sis_login_id]
    rows = [(*CANVAS, assignment), ("    Points Possible", "", "", "", "", _number(lab.max_score))]
    for student in known:
        grade = lab.by_student.get(student.id)
        rows.append((student.name, student.canvas_id, student.sis_user_id, student.sis_login_id, student.section,
                     _number(grade.score) if grade else ""))
    said = [f"{student} has a grade and is not in the roster." for student in lab.by_student if student not in roster]
    said += [f"{student.id} has no canvas_id, sis_user_id or sis_login_id in the roster." for student in roster.values() if student not in known]
    if waiting := sum(bool(grade.unmarked) for grade in lab.by_student.values()):
        said.append(f"{waiting} of {len(lab.by_student)} wait for answers to be marked in the formgrader.")
    return _text(rows), said


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _text(rows: Iterable[tuple]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
