"""A submitted notebook: read whatever came, and pick the code that grading executes."""
from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode

MAX_BYTES = 64 << 20


class Unreadable(Exception):
    """The file is no notebook; one line for the report says what it is instead."""


@dataclass(frozen=True)
class CodeCell:
    """A cell to execute. `name` is its nbgrader id, or "" for a cell that the student added."""
    name: str
    source: str


def read_notebook(path: Path) -> NotebookNode:
    """The notebook as nbformat 4, whatever version it was saved in. Raises Unreadable."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size == 0:
            raise Unreadable(f"{path.name} is empty.")
        data = path.read_bytes()
    except OSError as error:
        raise Unreadable(f"{path.name} cannot be read: {error.strerror}.") from None
    if data[:4] == b"%PDF":
        raise Unreadable(f"{path.name} is a PDF file, not a notebook.")
    try:
        notebook = nbformat.reads(data.decode("utf-8-sig"), as_version=4)
        notebook.cells
    except UnicodeDecodeError:
        raise Unreadable(f"{path.name} is not text, so not a notebook.") from None
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise Unreadable(f"{path.name} is not a valid notebook: {reason}") from None
    return notebook


def grade_id(cell: NotebookNode) -> str:
    """nbgrader's id of a cell, or ""."""
    found = cell.get("metadata", {}).get("nbgrader", {})
    return str(found.get("grade_id", "")) if isinstance(found, dict) else ""


def is_solution(cell: NotebookNode) -> bool:
    found = cell.get("metadata", {}).get("nbgrader", {})
    return cell.cell_type == "code" and isinstance(found, dict) and bool(found.get("solution"))


def is_locked_code(cell: NotebookNode) -> bool:
    """Code that every submission starts from: the setup cell and what the lab gives."""
    found = cell.get("metadata", {}).get("nbgrader", {})
    return cell.cell_type == "code" and isinstance(found, dict) and bool(found.get("locked")) and not found.get("grade")


def judged_cells(submitted: NotebookNode, released: NotebookNode) -> list[CodeCell]:
    """The code to execute, in the submission's order: the student's solutions and extra cells, and the lab's own
    code as it was released. Checks and experiments are left out.
    """
    by_key = _index(released)
    placed: dict[str, int] = {}        # released locked code -> position in `cells`
    cells: list[CodeCell] = []
    last = 0                           # released position of the last cell recognised
    locked = [(i, c) for i, c in enumerate(released.cells) if is_locked_code(c)]
    for cell in submitted.cells:
        if cell.get("cell_type") != "code":
            continue
        position = next((by_key[key] for key in _keys(cell) if key in by_key), None)
        if position is None:
            cells.append(CodeCell("", _python(cell.source)))
            continue
        original = released.cells[position]
        # Locked code that was lost belongs before the next cell that was not.
        for i, lost in locked:
            if last <= i < position and grade_id(lost) not in placed and not _occurs(lost, submitted, by_key, released):
                placed[grade_id(lost)] = len(cells)
                cells.append(CodeCell(grade_id(lost), _python(lost.source)))
        last = max(last, position)
        if is_locked_code(original):
            if grade_id(original) not in placed:
                placed[grade_id(original)] = len(cells)
                cells.append(CodeCell(grade_id(original), _python(original.source)))
        elif is_solution(original):
            cells.append(CodeCell(grade_id(original), _python(cell.source)))
    return cells


def _index(released: NotebookNode) -> dict[tuple[str, str], int]:
    return {key: i for i, cell in reversed(list(enumerate(released.cells))) for key in _keys(cell)}


def _keys(cell: NotebookNode) -> list[tuple[str, str]]:
    """How a cell is recognised, strongest first: nbgrader's id, the cell's id, the text, the function it defines."""
    keys = [("grade", grade_id(cell)), ("id", cell.get("id", "")), ("text", " ".join(cell.source.split()))]
    return [key for key in keys if key[1]]


def _occurs(lost: NotebookNode, submitted: NotebookNode, by_key: dict, released: NotebookNode) -> bool:
    return any(by_key.get(key) is not None and released.cells[by_key[key]] is lost
               for cell in submitted.cells for key in _keys(cell))


def _python(source: str) -> str:
    """The cell without IPython's own syntax: magics and shell lines become comments."""
    lines = source.splitlines()
    if lines and lines[0].startswith("%%") and not re.match(r"%%(time|timeit|capture)\b", lines[0]):
        return ""
    return "\n".join(re.sub(r"^(\s*)([%!].*|.*\?)$", r"\1pass  # \2", line) if re.match(r"\s*([%!]|[\w.]+\?+$)", line) else line
                     for line in lines)
