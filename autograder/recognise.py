"""Which released cell a submitted cell is: by nbgrader's id, by the cell's id, by content, by place."""
from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from nbformat import NotebookNode

from autograder.cellcode import functions
from autograder.submission import grade_id

ALIKE = 0.6     # the part of the words that an edited cell shares with the released one
REACH = 50      # cells looked at in a gap


@dataclass(frozen=True)
class Original:
    """A released cell. `name` is its id, and an exercise's function; `role` is one of setup, given, solution, check,
    speed, text, written (all nbgrader's), experiment and prediction (free, without nbgrader's metadata).
    """
    cell: NotebookNode
    name: str
    role: str

    @property
    def is_code(self) -> bool:
        return self.cell.cell_type == "code"

    @property
    def locked(self) -> bool:
        return self.role in ("setup", "given", "check", "speed", "text")

    @property
    def label(self) -> str:
        """For notes; most ids that are made from a hash say nothing to a reader."""
        article = "an" if self.role == "experiment" else "a"
        return f"{article} {self.role} cell" if self.role in ("text", "given", "experiment", "prediction") else self.name


def originals(released: NotebookNode) -> list[Original]:
    return [Original(cell, grade_id(cell) or cell.get("id", ""), _role(cell)) for cell in released.cells]


def _role(cell: NotebookNode) -> str:
    nbgrader, code = cell.metadata.get("nbgrader"), cell.cell_type == "code"
    if not nbgrader:
        return "experiment" if code else "prediction"
    if nbgrader.get("solution"):
        return "solution" if code else "written"
    kind = nbgrader["grade_id"].split("-")[0]
    return "text" if not code else kind if kind in ("check", "speed", "setup") else "given"


def recognise(cells: list[NotebookNode], released: list[Original]) -> list[int | None]:
    """For each submitted cell the position of the released cell that it is, or is a copy of; None if it is the student's own.

    A solution that lost its ids is not recognised here; repair finds it by the function that it defines.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for i, original in enumerate(released):
        for key in set(_keys(original.cell)):
            found.setdefault(key, []).append(i)
    unique = {key: places[0] for key, places in found.items() if len(places) == 1}
    owners = [next((unique[key] for key in _keys(cell) if key in unique), None) for cell in cells]
    _fill_gaps(cells, released, owners)
    return owners


def _keys(cell: NotebookNode) -> list[tuple[str, str]]:
    """What identifies a cell, strongest first. Colab may move the cell's id into the metadata."""
    code = [line for line in cell.source.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    call = re.match(r"\s*(check|speed)\(\s*(\w+)\s*\)", code[0]) if len(code) == 1 else None
    keys = [("name", grade_id(cell)), ("id", str(cell.get("id", ""))), ("id", str(cell.metadata.get("id", ""))),
            ("text", " ".join(cell.source.split())), ("call", f"{call[1]}-{call[2]}" if call else "")]
    return [key for key in keys if key[1]]


def _fill_gaps(cells: list[NotebookNode], released: list[Original], owners: list[int | None]) -> None:
    """Cells without ids that were edited: the most similar one between the recognised neighbours."""
    places: dict[int, int] = {}
    for p, owner in enumerate(owners):
        if owner is not None:
            places.setdefault(owner, p)
    for i, original in enumerate(released):
        if i in places or original.role in ("solution", "check", "speed", "written"):
            continue
        low = next((places[j] for j in range(i - 1, -1, -1) if j in places), -1)
        high = next((places[j] for j in range(i + 1, len(released)) if j in places), len(cells))
        alike = {p: _likeness(original, cells[p]) for p in range(low + 1, high)[:REACH] if owners[p] is None}
        best = max(alike, key=alike.get, default=None)
        if best is not None and alike[best] >= ALIKE:
            owners[best] = i
            places[i] = best


def _likeness(original: Original, cell: NotebookNode) -> float:
    if original.is_code != (cell.cell_type == "code"):
        return 0.0
    words, theirs = _words(original.cell.source), _words(cell.source)
    shared = (words & theirs).total()
    if not original.is_code:  # where a text was added to, it is still the same
        return shared / max(words.total(), 2)
    if functions(cell.source) - functions(original.cell.source):
        return 0.0  # a helper of the student's own, which must be executed
    return 2 * shared / max(words.total() + theirs.total(), 1)


@lru_cache(2 * REACH)
def _words(source: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", source))
