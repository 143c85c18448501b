"""A lab's script cut into cells, each with its kind: plain Python on purpose, for machines without Jupyter.

What the author writes               kind         in the student's notebook
# %% [markdown]                      text         locked
  tags=["prediction"]                prediction   a note of the student's own
  tags=["written"] points=4          written      emptied, graded by hand; its question stands in the cell before
# %% tags=["setup"]                  setup        locked; calls setup("NN_topic")
# %% tags=["experiment"]             experiment   free to change, never graded
# %% with ### BEGIN SOLUTION         solution     the solution becomes a stub; the cell's last function is the exercise
# %% with only check(name)           check        locked, worth the points of the exercise's tests
# %% with only speed(name)           speed        locked, worth the points of the exercise's speed targets
# %% with anything else              given        locked; the student's code may rely on it
"""
from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from course.spec.load import SpecError

BEGIN, END = "BEGIN SOLUTION", "END SOLUTION"  # nbgrader's own marks, found anywhere in a line as nbgrader does
TAGS = {"markdown": ("prediction", "written"), "code": ("setup", "experiment")}


@dataclass(frozen=True)
class Cell:
    """One cell. `line` is the number of its first line in the script; `id` its cell id and nbgrader's grade_id."""
    kind: str
    source: str
    line: int
    id: str
    name: str = ""      # the exercise of a solution, check or speed cell; the name of a written answer
    points: float = 0   # of a written answer; all other points stand at the tests

    @property
    def is_code(self) -> bool:
        return self.kind not in ("text", *TAGS["markdown"])

    @property
    def tags(self) -> list[str]:
        return [self.kind] if self.kind in (*TAGS["markdown"], *TAGS["code"]) else []


def fail(path: Path, line: int, what: str) -> NoReturn:
    raise SpecError(f"{path}:{line}: {what}")


def cut(path: Path) -> list[Cell]:
    """The cells of a script. Raises SpecError, in one line with file and line number."""
    lines = path.read_text(encoding="utf-8").splitlines()
    starts = [i for i, line in enumerate(lines) if line.startswith("# %%")]
    if any(line.strip() for line in lines[:starts[0] if starts else None]):
        fail(path, 1, "text before the first cell; begin the script with # %%")
    cells: list[Cell] = []
    for start, end in zip(starts, [*starts[1:], len(lines)]):
        body = lines[start + 1:end]
        blank = next((i for i, line in enumerate(body) if line.strip()), len(body))
        cell = _cell(path, start + 1, lines[start], start + 2 + blank, "\n".join(body[blank:]).rstrip(), cells)
        if any(other.id == cell.id for other in cells):
            what = {"solution": "exercise", "written": "written answer", "setup": "setup cell"}.get(cell.kind, f"{cell.kind} of")
            fail(path, cell.line, f"a second {what} {cell.name}".rstrip() + "; one is enough, and names are used once")
        cells.append(cell)
    return cells


def _cell(path: Path, marker_line: int, marker: str, line: int, source: str, before: list[Cell]) -> Cell:
    markdown, tag, points, name = _options(path, marker_line, marker)
    if markdown:
        kind = tag or "text"
        source = _uncomment(path, line, source)
    else:
        kind, name = _kind_of_code(path, line, tag, source)
    if kind == "written":
        name = name or f"written-{1 + sum(cell.kind == 'written' for cell in before)}"
        if not points:
            fail(path, marker_line, 'a written answer without points; write tags=["written"] points=4')
    elif points:
        fail(path, marker_line, "only a written answer has points here; an exercise's points stand at its tests")
    if kind == "setup":
        identity = kind
    elif name:
        identity = name if kind in ("solution", "written") else f"{kind}-{name}"
    else:  # from the content, so that cells before and after may come and go
        # Notes look alike; each belongs to the question above it.
        content = before[-1].id + source if kind == "prediction" and before else source
        identity = f"{kind}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        again = sum(cell.id.startswith(identity) for cell in before)
        identity += f"-{again + 1}" if again else ""
    return Cell(kind, source, line, identity, name, points)


def _options(path: Path, line: int, marker: str) -> tuple[bool, str, float, str]:
    """Is it markdown, and its tag, points and name: of `# %% [markdown] tags=["written"] points=4 name="claim"`."""
    rest = marker.removeprefix("# %%")

    def take(pattern: str) -> str:
        nonlocal rest
        match = re.search(rf"\s{pattern}(?=\s|$)", rest)
        rest = rest.replace(match[0], "", 1) if match else rest
        return match[1] if match else ""

    markdown, tag = bool(take(r"(\[markdown\])")), take(r'tags=\["([\w-]+)"\]')
    points, name = float(take(r"points=(\d+(?:\.\d+)?)") or 0), take(r'name="([\w-]+)"')
    if rest.strip():
        fail(path, line, f'{rest.strip()} is not understood; after # %% come [markdown], tags=["one"], points=4, name="one"')
    allowed = TAGS["markdown" if markdown else "code"]
    if tag and tag not in allowed:
        fail(path, line, f"unknown tag {tag}; a cell of this type has {' or '.join(allowed)}, or none")
    return markdown, tag, int(points) if points == int(points) else points, name


def _uncomment(path: Path, line: int, source: str) -> str:
    lines = source.splitlines()
    for i, text in enumerate(lines):
        if text and not text.startswith("#"):
            fail(path, line + i, "text that does not begin with #; begin it with #, or a code cell with # %%")
        if BEGIN in text or END in text:
            fail(path, line + i, 'a solution mark in a text cell; a model answer is a cell with tags=["written"]')
    return "\n".join(re.sub("^# ?", "", text) for text in lines)


def _kind_of_code(path: Path, line: int, tag: str, source: str) -> tuple[str, str]:
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        fail(path, line + (error.lineno or 1) - 1, f"{error.msg}; every code cell is Python on its own (no magics)")
    solution = _has_solution(path, line, source)
    if solution and tag:
        fail(path, line, f"a solution in a cell with the tag {tag}; give it a cell of its own")
    if tag:
        return tag, ""
    if solution:
        functions = [node.name for node in body if isinstance(node, ast.FunctionDef)]
        if not functions:
            fail(path, line, "a solution outside any function; an exercise is a function")
        return "solution", functions[-1]
    for node in body:
        match node:
            case ast.Expr(ast.Call(ast.Name("check" | "speed" as kind), [ast.Name(name)], [])):
                if len(body) > 1:
                    fail(path, line + node.lineno - 1, f"{kind}({name}) stands among other code; give it a cell of its own")
                return kind, name
    return "given", ""


def _has_solution(path: Path, line: int, source: str) -> bool:
    opened, found = None, False
    for number, text in enumerate(source.splitlines(), line):
        if BEGIN in text:
            if opened:
                fail(path, number, f"a solution begins inside the one of line {opened}; close that first with ### {END}")
            opened, found = number, True
        elif END in text:
            if not opened:
                fail(path, number, f"a solution ends that never began; put ### {BEGIN} before it or remove this line")
            opened = None
    if opened:
        fail(path, opened, f"this solution is never closed; put ### {END} after it, in the same cell")
    return found
