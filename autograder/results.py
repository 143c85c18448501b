"""Results on disk: one JSON file a submission, written whole or not at all, by one grader at a time."""
from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Callable, Iterator
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
def clear_errors(database: Path) -> Iterator[None]:
    """Inside, a database that cannot be written is a CannotWrite: the disk is full, or it is read-only."""
    from sqlalchemy.exc import OperationalError
    try:
        yield
    except OperationalError as error:
        raise CannotWrite.at(database, str(error.orig)) from error


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


def result_path(out: Path, lab: str, student: str) -> Path:
    return Path(out) / lab / f"{student}.json"


def merge(kept: dict, new: dict, stale: Callable[[dict], bool]) -> dict:
    """The kept result with those verdicts replaced that are stale, by the new ones of that kind."""
    fresh = [test for test in new["tests"] if stale(test)]
    at = next((i for i, test in enumerate(kept["tests"]) if stale(test)), len(kept["tests"]))
    tests = [test for test in kept["tests"][:at] if not stale(test)] + fresh + [test for test in kept["tests"][at:] if not stale(test)]
    counted = [test for test in tests if test["status"] != "deferred"]
    isolation = kept["isolation"] if kept["isolation"].startswith("not isolated") else new["isolation"]
    return {**kept, **{key: new[key] for key in ("error", "notes", "device")}, "isolation": isolation, "tests": tests,
            "score": sum(test["points"] for test in counted), "max_score": sum(test["max_points"] for test in counted),
            "seconds": round(kept["seconds"] + new["seconds"], 3), "peak_bytes": max(kept["peak_bytes"], new["peak_bytes"])}


class Regrading:
    """A command that judges anew what has results already; after a kill, the same command goes on where it was.

    A result belongs to it when it carries its id, which stands in a file until everything is done.
    """

    def __init__(self, folder: Path, what: dict):
        self._file = Path(folder) / ".regrading"
        before = read_json(self._file) or {}
        self.id = before["id"] if before.get("what") == what else secrets.token_hex(8)
        write_json(self._file, {"id": self.id, "what": what})

    def done(self) -> None:
        self._file.unlink(missing_ok=True)
