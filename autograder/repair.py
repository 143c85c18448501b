"""A damaged submission becomes the released notebook again, with the student's work in it.

Every released cell is there once and in its place. Locked cells are as released; solutions, written answers and what
students may change freely are the student's; their own cells stay behind the released cell that they followed.
Repairing a second time changes nothing more.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import nbformat
from nbformat import NotebookNode

from autograder.arrange import Arrangement, is_experiment
from autograder.cellcode import definitions, to_python
from autograder.recognise import Original
from autograder.submission import CodeCell, grade_id

MOST_NAMES = 6  # in one note


@dataclass(frozen=True)
class Repaired:
    """`notes` are short sentences for the report; `cells` is the code that grading executes, in order."""
    notebook: NotebookNode
    notes: list[str]
    cells: list[CodeCell]


def repair(submitted: NotebookNode, released: NotebookNode) -> Repaired:
    """The released notebook with what the student wrote. Never raises for what submission.read_notebook returned."""
    work = Arrangement(submitted, released)
    layout = work.layout()
    notebook = nbformat.from_dict({**released, "cells": [cell for cell, _ in layout]})
    return Repaired(notebook, _notes(work), _judged(work, layout))


def judged_cells(submitted: NotebookNode, released: NotebookNode) -> list[CodeCell]:
    """The code to execute: setup, what the lab gives, solutions and the student's own cells, in the repaired order."""
    return repair(submitted, released).cells


def _judged(work: Arrangement, layout: list[tuple[NotebookNode, Original | None]]) -> list[CodeCell]:
    """Of experiments only what other cells may need; of checks and speed measurements nothing."""
    cells = []
    for cell, original in layout:
        role = "own" if original is None else original.role
        if cell.cell_type != "code" or role in ("check", "speed"):
            continue
        if role == "experiment" or role == "own" and is_experiment(cell):
            released = original.cell.source if original else ""
            cells.append(CodeCell("", definitions(cell.source, released, set(work.exercises))))
        else:
            cells.append(CodeCell(original.name if original else "", to_python(cell.source)))
    return [cell for cell in cells if cell.source.strip()]


def _notes(work: Arrangement) -> list[str]:
    """Empty for a notebook that came as it was released, with the student's work in the cells meant for it."""
    everything = list(enumerate(work.all))
    there = {work.all[owner].role for owner in work.owners if owner is not None}
    if work.exercises and not work.winners and not there & {"solution", "check"}:
        return ["none of this lab's exercises is in it: is it another lab's notebook?"]
    said = [_say([o for i, o in everything if not {i} & (work.source.keys() | work.text.keys() | work.adopted.keys())], "was missing and has been restored",
                 "were missing and have been restored"),
            _say([o for i, o in everything if o.locked and i in work.source and work.changed(work.source[i], i)],
                 "had been changed and is as released again", "had been changed and are as released again"),
            _say([o for i, o in everything if o.locked and len(work.copies(i)) > 1], "was there more than once and is kept once",
                 "were there more than once and are kept once")]
    said += [f"{name} was there {count} times: the last one that is not blank counts" for name, i in work.exercises.items()
             if (count := len({p for p in work.copies(i) if name in work.defines[p]} | set(work.definers(name)))) > 1]
    said += [f"the answer {o.name} was there more than once: the last one counts" for i, o in everything
             if o.role == "written" and len(work.copies(i)) > 1]
    for home in sorted(set(work.homes.values())):
        guests = [work.all[i] for name, i in work.exercises.items() if i in work.text and work.homes[work.winners[name]] == home]
        said.append(_say(guests, *(f"{verb} written in the cell of {work.all[home].name}" for verb in ("was", "were"))))
    said += [f"the answer {work.all[i].name} was taken from a cell next to its place" for i in work.adopted]
    for kind, word in (("code", "a code cell"), ("markdown", "a text cell")):
        said.append(_say([o for i, o in everything if o.cell.cell_type == kind and i in work.source and work.submitted[work.source[i]].cell_type != kind],
                         f"had another type and is {word} again", f"had another type and are {word.removeprefix('a ')}s again"))
    places = [work.source[i] for i in sorted(work.source)]
    if places != sorted(places):
        said.append("the cells were in another order")
    known = {grade_id(cell) for cell in work.submitted}
    lost = sum(1 for i, o in everything if i in work.source.keys() - work.adopted.keys() and grade_id(o.cell) not in known | {""})
    if lost:
        said.append(f"{'a cell' if lost == 1 else f'{lost} cells'} had lost nbgrader's metadata")
    return [note for note in said if note]


def _say(cells: Iterable[Original], one: str, many: str) -> str:
    labels = Counter(o.label for o in cells)
    words = [label if count == 1 else f"{count} {label.removeprefix('a ').removeprefix('an ')}s" for label, count in labels.items()]
    if not words:
        return ""
    if len(words) > MOST_NAMES:
        words[MOST_NAMES - 1:] = [f"{len(words) - MOST_NAMES + 1} more"]
    return f"{words[0]} {one}" if labels.total() == 1 else f"{' and '.join(filter(None, [', '.join(words[:-1]), words[-1]]))} {many}"
