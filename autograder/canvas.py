"""Canvas's zip of "Download Submissions" into nbgrader's submitted/STUDENT/LAB/topic.ipynb.

Canvas names a file NAME_LATE_USER_FILE_TITLE: the sortable name in lower-case letters, LATE if it was, the ids of the
user and of the file, and the title that the student gave it, with -1, -2, ... for files of the same title that came later.
"""
from __future__ import annotations

import json
import re
import unicodedata
import zipfile
import zlib
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath

from autograder.ipynb import MAX_BYTES
from autograder.results import write_atomically
from autograder.roster import Student, match_users

FILE = re.compile(r"(?P<name>.*?)_(?P<late>LATE_)?(?P<user>\d{1,30})_(?P<number>\d{1,30})_(?P<title>.+)", re.DOTALL)
ANONYMOUS = re.compile(r"(LATE_)?anon_[A-Za-z0-9]+_\d+_.+")
NOTEBOOK = re.compile(r"(?P<stem>.+?)(-(?P<again>\d{1,9}))?( ?\(\d+\))?\.ipynb(\.txt|\.json)?", re.IGNORECASE)


class CanvasError(ValueError):
    """What came from or should go to Canvas cannot be used; the text says why."""
    for_people = True


@dataclass
class Imported:
    """What became of a zip: students by what happened, and a line for each thing that a person must look at."""
    lab: str
    problems: list[str]
    written: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _File:
    """A file of the zip, as its name describes it."""
    entry: zipfile.ZipInfo
    name: str
    late: bool
    user: str
    number: int
    title: str

    def order(self, topic: str) -> tuple:
        """The notebook to grade comes last: by its title the lab's before others, then the newest."""
        match = NOTEBOOK.fullmatch(self.title)
        return match["stem"].lower() == topic, self.number, int(match["again"] or 0)


def import_submissions(archive: Path, roster: dict[str, Student], out: Path, labs: dict[str, str],
                       times: Path | None = None) -> Imported:
    """The newest notebook of each student into out/STUDENT/LAB/topic.ipynb.

    `labs` maps topics to folders; the files' titles decide which lab it is. The zip does not say when a file was handed
    in: `times` does, Canvas's own list of the assignment's submissions in JSON. Raises CanvasError, CannotWrite.
    """
    when = _times(times) if times else {}
    try:
        opened = zipfile.ZipFile(archive)
    except zipfile.BadZipFile as error:
        raise CanvasError(f"{archive} is not a whole zip archive ({error}); download it again.") from None
    with opened:
        files, problems = _files(opened)
        topic = _topic(files, labs)
        found, chosen = Imported(labs[topic], problems), defaultdict(list)
        owners = match_users(roster, {file.user: file.name for file in files})
        for file in files:
            student, problem = owners[file.user]
            chosen[student].append(file) if student else problems.append(f"{file.name} (Canvas user {file.user}) {problem}: {file.title} not imported.")
        for student, handed_in in sorted(chosen.items()):
            notebooks = [file for file in handed_in if NOTEBOOK.fullmatch(file.title)]
            if not notebooks:
                problems.append(f"{student} handed in no notebook, but {', '.join(sorted(file.title for file in handed_in))}.")
                continue
            newest = max(notebooks, key=lambda file: file.order(topic))
            try:
                data = opened.read(newest.entry)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                problems.append(f"{student}: {newest.title} in the archive is damaged ({error}): not imported.")
                continue
            new = _save(Path(out) / student / found.lab, topic, data, when.get(newest.user))
            (found.written if new else found.unchanged).append(student)
            found.late += [student] * newest.late
    found.missing = [student for student in roster if student not in chosen]
    return found


def _save(folder: Path, topic: str, data: bytes, when: datetime | None) -> bool:
    """True if it is another notebook than the one that was there."""
    path, stamp = folder / f"{topic}.ipynb", folder / "timestamp.txt"
    new = not path.is_file() or path.read_bytes() != data
    if new:
        stamp.unlink(missing_ok=True)   # of the one before
        write_atomically(path, data)
    if when:
        write_atomically(stamp, f"{when.astimezone(timezone.utc):%Y-%m-%d %H:%M:%S} UTC\n".encode())
    return new


def _files(opened: zipfile.ZipFile) -> tuple[list[_File], list[str]]:
    """Of an entry's path only the last part is used, and of that the ids: no file is written where an archive says."""
    files, problems = [], []
    for entry in opened.infolist():
        name = entry.filename
        if not entry.flag_bits & 0x800:  # not said to be UTF-8, and read as if it came from DOS
            with suppress(UnicodeError):
                name = name.encode("cp437").decode()
        path = PurePosixPath(name.replace("\\", "/"))
        base = unicodedata.normalize("NFC", path.name)
        match = FILE.fullmatch(base)
        if path.is_absolute() or ".." in path.parts or re.match("[A-Za-z]:", name):
            problems.append(f"{name!r} points out of the archive: not imported.")
        elif entry.is_dir() or "__MACOSX" in path.parts or base.startswith("."):
            continue
        elif ANONYMOUS.fullmatch(base):
            raise CanvasError("The submissions are anonymous. Turn off anonymous grading of the assignment in Canvas, and download them again.")
        elif entry.flag_bits & 1 or entry.file_size > MAX_BYTES:
            problems.append(f"{base!r} is {'encrypted' if entry.flag_bits & 1 else f'larger than {MAX_BYTES >> 20} MB'}: not imported.")
        elif match is None:
            text = re.fullmatch(r".+_\d+_(text|link)\.html", base)
            problems.append(f"{base!r} is {'a text or a link, not a file' if text else 'not named as Canvas names files'}: not imported.")
        else:
            files.append(_File(entry, match["name"], bool(match["late"]), match["user"], int(match["number"]), match["title"]))
    return files, problems


def _topic(files: list[_File], labs: dict[str, str]) -> str:
    if len(labs) == 1:
        return next(iter(labs))
    stems = (match["stem"].lower() for file in files if (match := NOTEBOOK.fullmatch(file.title)))
    named = Counter(stem for stem in stems if stem in labs)
    if not named:
        raise CanvasError(f"No notebook in the archive has the name of a lab's ({', '.join(labs)}). Say which lab it is with --lab.")
    return named.most_common(1)[0][0]


def _times(path: Path) -> dict[str, datetime]:
    """From https://CANVAS/api/v1/courses/COURSE/assignments/ASSIGNMENT/submissions?per_page=100, saved as it came."""
    try:
        return {str(one["user_id"]): datetime.fromisoformat(one["submitted_at"])
                for one in json.loads(path.read_bytes()) if one["submitted_at"]}
    except (ValueError, KeyError, TypeError):
        raise CanvasError(f"{path} is not Canvas's list of submissions: a JSON list of objects with user_id and submitted_at.") from None
