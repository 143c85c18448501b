"""Results on disk: one JSON file a submission, written whole or not at all."""
from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path


class CannotWrite(OSError):
    """A result could not be saved; the text says where and what to do."""


def write_atomically(path: Path, data: bytes) -> None:
    """The file is either as it was or complete, whatever happens meanwhile. Raises CannotWrite."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise CannotWrite(f"{path} cannot be written: {error.strerror}. Make room or choose another folder with --out; "
                          "what was written before is complete, and the same command goes on from there.") from error


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> dict | None:
    """A result written before, or None if there is none that is whole."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
