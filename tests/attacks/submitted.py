"""What an attack is: one cell of a submission of lab 11, and the verdict that it must get.

    @attack("sgd_step", "error", says=r"got: \\[\\]")
    def name_of_the_attack():
        \"\"\"What it tries.\"\"\"
        ... the cell, as a student would hand it in ...

The body is the cell's source; here it is never run. It finds in KNOWN whatever an attacker could have guessed.
"""
from __future__ import annotations

import ast
import importlib.util
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FAMILIES = Path(__file__).with_name("families")


@dataclass(frozen=True)
class Attack:
    """`status` is what the tests of `exercise` may get: all of them "passed" means full marks. `says`: a pattern that
    a message must match.

    open      a pattern that a message matches where there is no sandbox: the attack works there, so it is one
    spreads   it is made against the whole submission; otherwise the exercise beside it keeps its full marks
    twice     the second submission with the same cell looks for what the first one left
    timed     the speed target is judged too; it must not pass, but for an honest one
    """
    name: str
    family: str
    tries: str
    source: str
    exercise: str
    status: frozenset[str]
    says: str = ""
    open: str = ""
    spreads: bool = False
    twice: bool = False
    timed: bool = False
    gpu: bool = False
    prelude: str = ""   # a cell before it


def attack(exercise: str, status: str, **options) -> Callable:
    def mark(function: Callable) -> Callable:
        function.attack = exercise, frozenset(status.split(" or ")), options
        return function
    return mark


def honest(exercise: str, **options) -> Callable:
    """Not an attack at all: full marks."""
    return attack(exercise, "passed", **options)


def cell_of(function: Callable) -> str:
    """The body of a function without its docstring, as it stands in the file."""
    lines = inspect.getsource(function).splitlines()
    body = ast.parse(textwrap.dedent("\n".join(lines))).body[0].body
    return textwrap.dedent("\n".join(lines[body[0].end_lineno:])).strip() + "\n"


def attacks_of(family: str) -> list[Attack]:
    spec = importlib.util.spec_from_file_location(f"attacks_{family}", FAMILIES / f"{family}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    prelude = getattr(module, "PRELUDE", "")
    return [Attack(name, family, inspect.getdoc(thing), cell_of(thing), *thing.attack[:2], prelude=prelude, **thing.attack[2])
            for name, thing in vars(module).items() if hasattr(thing, "attack")]


def all_attacks() -> list[Attack]:
    return [each for path in sorted(FAMILIES.glob("*.py")) for each in attacks_of(path.stem)]
