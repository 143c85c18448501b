"""What students must not get, line by line: solutions, model answers, hidden tests and mistakes."""
from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable
from dataclasses import dataclass

from autograder.script import BEGIN, END, Cell
from autograder.source import LabSource
from course.spec.load import HIDDEN, MISTAKES, VISIBLE, Specification

SUBSTANTIAL = 20  # characters; a shorter line (`return grad, {}`) gives nothing away


@dataclass(frozen=True)
class Leak:
    line: int
    origin: str


class Secrets:
    """The substantial lines of one lab that students do not see anyway; spaces do not count."""

    def __init__(self, lab: LabSource, spec: Specification):
        self.lines: dict[str, str] = {}
        self.names = {test.name: f"hidden test {test.name}" for test in spec.tests if test.hidden}
        parts = [(cell, *divide(cell)) for cell in lab.cells]
        self.public = {line for _, seen, _ in parts for line in seen}
        for cell, _, secret in parts:
            self._add(secret, f"{cell.name}'s solution" if cell.is_code else f"the model answer {cell.name}")
        self.public |= set(normal((lab.folder / VISIBLE).read_text(encoding="utf-8")))
        for name in (HIDDEN, MISTAKES):
            if (lab.folder / name).is_file():
                self._add(code_lines((lab.folder / name).read_text(encoding="utf-8")), name)

    def _add(self, lines: Iterable[str], origin: str) -> None:
        for line in lines:
            if len(line) >= SUBSTANTIAL and line not in self.public and not line.startswith(("import ", "from ")):
                self.lines.setdefault(line, origin)

    def without(self, lines: set[str]) -> Secrets:
        """These secrets but for some lines."""
        other = copy.copy(self)
        other.lines = {line: origin for line, origin in self.lines.items() if line not in lines}
        return other

    def find(self, text: str) -> Leak | None:
        """The first line of `text` that is one of the secret ones, or names a hidden test."""
        for number, line in enumerate(normal(text), 1):
            if line in self.lines:
                return Leak(number, self.lines[line])
            for name in re.findall(r"\btest_\w+", line):
                if name in self.names:
                    return Leak(number, self.names[name])
        return None


def normal(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def divide(cell: Cell) -> tuple[list[str], list[str]]:
    """(the lines that students see, the lines of the solution or model answer)"""
    seen, secret, inside = [], [], cell.kind == "written"
    for line in normal(cell.source):
        if BEGIN in line or END in line:
            inside = BEGIN in line
        else:
            (secret if inside else seen).append(line)
    return seen, secret


def code_lines(source: str) -> list[str]:
    """The lines of a Python file without docstrings, of which mistakes' are the hints that students read."""
    lines = normal(source)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            text = node.body[0]
            lines[text.lineno - 1:text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    return lines
