"""From a lab's cells to its two notebooks: the instructor's with solutions, and the student's without."""
from __future__ import annotations

import hashlib
import json
import logging
import tomllib
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from nbgrader.preprocessors import CheckCellMetadata, ClearOutput, ClearSolutions, ComputeChecksums, LockCells

from autograder.script import Cell, fail
from autograder.source import LabSource
from course.spec.load import SpecError, Specification

COLAB = "https://colab.research.google.com"
BADGE = f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]({COLAB}/github/{{}}/blob/main/{{}})"
INSTALL = """\
import os

if "COLAB_RELEASE_TAG" in os.environ:  # only on Colab, and its own torch stays
    %pip install -q "trainfast @ git+{}"

"""


def instructor_notebook(lab: LabSource, spec: Specification, repository: str) -> NotebookNode:
    """The notebook with solutions and nbgrader's metadata, as in nbgrader's source folder."""
    _same_as_jupytext(lab)
    cells = [_cell(cell, spec) for cell in lab.cells]
    _fold_what_tells(lab.cells, cells)
    setup = next(cell for cell in cells if cell.metadata.get("tags") == ["setup"])
    setup.source = INSTALL.format(repository) + setup.source
    owner = repository.removeprefix("https://github.com/").removesuffix(".git")
    if cells[0].cell_type == "markdown" and owner != repository:  # Colab opens notebooks from GitHub only
        cells[0].source += "\n\n" + BADGE.format(owner, f"labs/{lab.folder.name}/{lab.name}.ipynb")
    return new_notebook(cells=cells, metadata={
        "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
        "language_info": {"name": "python"}})


def student_notebook(instructor: NotebookNode) -> NotebookNode:
    """The same without solutions, by nbgrader's own preprocessors in nbgrader's own order."""
    notebook = nbformat.from_dict(json.loads(json.dumps(instructor)))
    for preprocessor in (LockCells, ClearSolutions, ClearOutput, ComputeChecksums, CheckCellMetadata):
        notebook, _ = preprocessor(log=logging.getLogger("nbgrader.build")).preprocess(notebook, {})
    # So that a later build can tell whether the lab has changed since, and whether somebody has worked in the notebook.
    notebook.metadata["trainfast"] = {"build": _hash(notebook), "cells": digest(notebook)}
    return notebook


def digest(notebook: NotebookNode) -> str:
    """A hash of the cells' sources: running the notebook leaves it, typing into it changes it."""
    return _hash([[cell.cell_type, cell.source] for cell in notebook.cells])


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def to_bytes(notebook: NotebookNode) -> bytes:
    nbformat.validate(notebook)
    return (nbformat.writes(notebook, version=4) + "\n").encode()


def repository_address(root: Path) -> str:
    """`[tool.trainfast] repository` of pyproject.toml: where Colab installs the course from."""
    path = root / "pyproject.toml"
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))["tool"]["trainfast"]["repository"]
    except KeyError:
        raise SpecError(f'{path}: no address for Colab; add repository = "https://..." under [tool.trainfast]') from None


def _same_as_jupytext(lab: LabSource) -> None:
    """The script, opened in JupyterLab through jupytext, shows the cells that the build sees."""
    text = lab.path.read_text(encoding="utf-8")
    theirs = jupytext.reads(text, fmt={"extension": ".py", "format_name": "percent", "comment_magics": False}).cells
    for mine, their in zip(lab.cells, theirs):
        if (mine.is_code, mine.source) != (their.cell_type == "code", their.source.strip("\n").rstrip()):
            fail(lab.path, mine.line, "jupytext reads this cell differently; is there a # %% inside a string?")
    if len(theirs) != len(lab.cells):
        fail(lab.path, lab.cells[-1].line, f"jupytext reads {len(theirs)} cells where there are {len(lab.cells)}")


def _fold_what_tells(sources: list[Cell], cells: list[NotebookNode]) -> None:
    """Folds the code of the figures that follow a prediction: their titles and alternative texts tell the outcome."""
    predicted = False
    for source, cell in zip(sources, cells):
        if source.kind == "prediction":
            predicted = True
        elif not source.is_code:
            predicted &= not cell.source.startswith("#")  # a new section; mere text between two experiments is none
        elif predicted and source.kind == "experiment" and ("title=" in cell.source or "alt=" in cell.source):
            cell.metadata["jupyter"] = {"source_hidden": True}
            cell.metadata["cellView"] = "form"  # the same on Colab


def _cell(cell: Cell, spec: Specification) -> NotebookNode:
    new = new_code_cell if cell.is_code else new_markdown_cell
    metadata = {"tags": cell.tags} if cell.tags else {}
    if cell.kind not in ("experiment", "prediction"):
        points = {"check": spec.points(cell.name), "written": cell.points,
                  "speed": sum(s.points for s in spec.speeds if s.exercise == cell.name)}.get(cell.kind, 0)
        solution = cell.kind in ("solution", "written")
        metadata["nbgrader"] = {"schema_version": 3, "grade_id": cell.id, "solution": solution, "locked": not solution,
                                "grade": points > 0, "task": False}
        if points > 0:  # an optional exercise has none, and its check cell is not graded
            points = round(points, 6)  # 0.4 + 0.2 + 0.2
            metadata["nbgrader"]["points"] = int(points) if points == int(points) else points
    return new(cell.source, id=cell.id, metadata=metadata)
