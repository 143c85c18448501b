"""Who takes the course: a CSV with one row a student.

    id,name,email,canvas_id,sis_user_id,sis_login_id,section,11,12
    ada,"Lovelace, Ada",ada@example.org,4711,S-0815,ada01,Section 1,2030-05-08,

Only `id`, the name of the student's folder in submitted/, must be there. A column named like a lab holds the dates to
which single students may hand it in. The CSV that Canvas's gradebook exports is a roster too: `id` is then the SIS
Login ID, or the ID where there is none.
"""
from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, time
from pathlib import Path

LAB = re.compile(r"\d\d(_[a-z0-9_]+)?")
FOLDER = re.compile(r"\w[\w@.+-]*")   # a name that is safe as a folder and in nbgrader's patterns
CANVAS = {"Student": "name", "ID": "canvas_id", "SIS User ID": "sis_user_id", "SIS Login ID": "sis_login_id", "Section": "section"}


class RosterError(ValueError):
    """The roster cannot be used; the text names file and line."""
    for_people = True


@dataclass(frozen=True)
class Student:
    id: str
    name: str = ""
    email: str = ""
    canvas_id: str = ""
    sis_user_id: str = ""
    sis_login_id: str = ""
    section: str = ""
    extensions: dict[str, datetime] = field(default_factory=dict)   # by lab's number

    def extension(self, lab: str) -> datetime | None:
        """Until when this student may hand the lab in, if later than others."""
        return self.extensions.get(lab[:2])


def load_roster(path: Path) -> dict[str, Student]:
    """The students by id, in the order of the file. Raises RosterError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise RosterError(f"{path} is not in UTF-8; save it as CSV UTF-8.") from None
    first = text.split("\n", 1)[0]
    reader = csv.DictReader(io.StringIO(text), delimiter=max(",;\t", key=first.count))
    columns = [(name or "").strip() for name in reader.fieldnames or []]
    from_canvas = "Student" in columns and "ID" in columns
    if not from_canvas and "id" not in columns:
        raise RosterError(f"{path}:1: there is no column id, but {', '.join(columns) or 'nothing'}.")
    students: dict[str, Student] = {}
    for row in reader:
        cells = {(name or "").strip(): (value or "").strip() for name, value in row.items() if not isinstance(value, list)}
        if not any(cells.values()) or "Points Possible" in cells.get("Student", ""):
            continue
        student = _student(cells, from_canvas, f"{path}:{reader.line_num}")
        if student is None:
            continue
        if student.id in students:
            raise RosterError(f"{path}:{reader.line_num}: {student.id} is there a second time.")
        students[student.id] = student
    for name in ("canvas_id", "sis_user_id", "sis_login_id"):
        _each_once(path, name, students.values())
    return students


def _student(cells: dict[str, str], from_canvas: bool, place: str) -> Student | None:
    if from_canvas:
        cells = {CANVAS[name]: value for name, value in cells.items() if name in CANVAS}
        if not cells["canvas_id"]:  # the row that says which assignments are not posted yet
            return None
        cells["id"] = cells.get("sis_login_id") or cells["canvas_id"]
    if not FOLDER.fullmatch(cells["id"]):
        raise RosterError(f"{place}: {cells['id']!r} cannot be a student's id; use letters, digits and . _ - @ +")
    known = {name: cells.get(name, "") for name in Student.__dataclass_fields__ if name != "extensions"}
    dates = {name[:2]: _date(value, place) for name, value in cells.items() if LAB.fullmatch(name) and value}
    return Student(**known, extensions=dates)


def _date(text: str, place: str) -> datetime:
    """A day ends at midnight; a time without a zone is this machine's."""
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise RosterError(f"{place}: {text!r} is no date; write it like 2030-05-08 or 2030-05-08 18:00") from None
    if len(text) == 10:
        when = datetime.combine(when, time(23, 59, 59))
    return when.astimezone()


def _each_once(path: Path, name: str, students: Iterable[Student]) -> None:
    seen: dict[str, str] = {}
    for student in students:
        value = getattr(student, name)
        if value and seen.setdefault(value, student.id) != student.id:
            raise RosterError(f"{path}: {student.id} and {seen[value]} have the same {name}, {value}.")


def match_users(roster: dict[str, Student], users: dict[str, str]) -> dict[str, tuple[str, str]]:
    """For each of Canvas's user ids, which come with names in its spelling, the student's id, or "" and why there is none.

    Names only help where the roster has no canvas_id.
    """
    by_id = {student.canvas_id: student.id for student in roster.values() if student.canvas_id}
    by_name: dict[str, list[str]] = defaultdict(list)
    for student in roster.values():
        for key in _sortable(student.name) if not student.canvas_id else ():
            by_name[key].append(student.id)
    of_name = Counter(name for user, name in users.items() if user not in by_id)
    found = {}
    for user, name in users.items():
        named = by_name.get(name, [])
        if user in by_id:
            found[user] = by_id[user], ""
        elif len(named) == 1 and of_name[name] == 1:
            found[user] = named[0], ""
        else:
            found[user] = "", f"can be {' or '.join(named)}; put the canvas_id into the roster" if named else "is not in the roster"
    return found


def _sortable(name: str) -> set[str]:
    """A name as Canvas writes it into a file's: lastfirst, whichever of the words are the last name."""
    name = unicodedata.normalize("NFC", name).lower()
    words = name.split()
    turned = [name] if "," in name else [" ".join(words[i:] + words[:i]) for i in range(len(words))]
    return {re.sub(r"\W", "", each) for each in turned} - {""}
