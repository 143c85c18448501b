"""Results on disk: one JSON file a submission, written whole or not at all, by one grader at a time."""
from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

LEFT_BEHIND = (".", "results/*", "autograded/*/*")  # where a killed grader may have left a file half written


class CannotWrite(OSError):
    """A result could not be saved; the text says where and what to do."""
    for_people = True

    @classmethod
    def at(cls, path: Path, why: str) -> CannotWrite:
        return cls(f"{path} cannot be written: {why}. Make room or choose another folder with --out; "
                   "what was written before is complete, and the same command goes on from there.")


class Busy(RuntimeError):
    """Another grader is at work in the same folder."""
    for_people = True


@contextlib.contextmanager
def one_writer(folder: Path) -> Iterator[None]:
    """Inside, no other grader writes to the folder; the lock falls with the process, however that ends.

    Raises Busy and CannotWrite.
    """
    lock = FileLock(Path(folder) / ".grading.lock", timeout=0)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise Busy(f"Another grader is writing to {Path(folder).resolve()}. Wait for it, or choose another folder with --out.") from None
    except OSError as error:
        raise CannotWrite.at(folder, error.strerror) from error
    try:
        for place in LEFT_BEHIND:
            for partial in Path(folder).glob(f"{place}/.*.partial"):
                partial.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def gradebook_errors(database: Path) -> Iterator[None]:
    """Inside, a gradebook that cannot be written is a CannotWrite; one whose making was cut short is made anew."""
    from sqlalchemy.exc import OperationalError
    if _half_made(database):
        database.unlink()
    try:
        yield
    except OperationalError as error:
        raise CannotWrite.at(database, str(error.orig)) from error


def _half_made(database: Path) -> bool:
    """nbgrader writes its version after making the tables; a gradebook without one could not be opened later."""
    try:
        with contextlib.closing(sqlite3.connect(f"{Path(database).resolve().as_uri()}?mode=rw", uri=True)) as book:
            tables = {name for name, in book.execute("select name from sqlite_master where type = 'table'")}
            rows = {name: book.execute(f"select count(*) from {name}").fetchone()[0] for name in tables & {"alembic_version", "assignment"}}
    except sqlite3.Error:  # there is none, or nbgrader will say what is the matter with it
        return False
    return not rows.get("alembic_version") and not rows.get("assignment")


def write_atomically(path: Path, data: bytes) -> None:
    """The file is either as it was or complete, whatever happens meanwhile. Raises CannotWrite."""
    path = Path(path)
    partial = path.with_name(f".{path.name[:200]}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CannotWrite.at(path, error.strerror) from error


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict | None:
    """A result written before, or None if there is none that is whole."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
