"""An embedded class of eight, made from the reference and the known mistakes; `autograder demo` grades it."""
from __future__ import annotations

import ast
import copy
import json
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from autograder.judge import Lab
from autograder.source import load_lab_source
from autograder.submission import grade_id, is_solution
from course.spec.load import MISTAKES

LAB = "11_saddle_points"


def reference_sources(lab: Lab) -> dict[str, str]:
    """Each solution cell's source, by exercise."""
    return {cell.name: cell.source for cell in load_lab_source(lab.folder).cells if cell.kind == "solution"}


def mistake_source(lab: Lab, name: str) -> tuple[str, str]:
    """(exercise, cell source) for a known mistake, written as a student would have: with the helpers that it uses."""
    mistake = next(m for m in lab.specification.mistakes if m.name == name)
    module = ast.parse((lab.folder / MISTAKES).read_text(encoding="utf-8"))
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    wanted, found = [name], []
    while wanted:
        node = functions[wanted.pop()]
        found.append(node)
        used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        wanted += [other for other in used & functions.keys() if functions[other] not in found]
    found[0].name, found[0].decorator_list = mistake.exercise, []
    return mistake.exercise, "\n\n\n".join(ast.unparse(node) for node in reversed(found))


def fill(released: NotebookNode, sources: dict[str, str]) -> NotebookNode:
    """The released notebook with these solution cells' sources."""
    notebook = copy.deepcopy(released)
    for cell in notebook.cells:
        if is_solution(cell) and grade_id(cell) in sources:
            cell.source = sources[grade_id(cell)]
    return notebook


def demo_class(lab: Lab) -> dict[str, NotebookNode]:
    """The eight notebooks, by student."""
    reference, released = reference_sources(lab), lab.released
    names = list(reference)
    bias, bias_source = mistake_source(lab, "without_bias_correction")
    nesterov, nesterov_source = mistake_source(lab, "no_look_ahead")
    perfect = fill(released, reference)
    damaged = fill(released, reference)
    checks = [i for i, c in enumerate(damaged.cells) if grade_id(c).startswith("check-")]
    damaged.cells.insert(checks[1], nbformat.from_dict(dict(damaged.cells[checks[1]])))
    del damaged.cells[checks[0]]
    return {
        "ada_perfect": perfect,
        "ben_no_bias_correction": fill(released, {**reference, bias: bias_source}),
        "cleo_nesterov_is_momentum": fill(released, {**reference, nesterov: nesterov_source}),
        "dan_half_finished": fill(released, {name: reference[name] for name in names[:len(names) // 2]}),
        "eve_blank": fill(released, {}),
        "finn_endless_loop": fill(released, {**reference, "rmsprop_step": "def rmsprop_step(*args, **kwargs):\n    while True:\n        pass"}),
        "gus_raises_on_import": fill(released, {**reference, "sgd_step": "import a_package_that_nobody_has\n\n\n" + reference["sgd_step"]}),
        "hana_deleted_a_check": damaged,
    }


def write_class(folder: Path, notebooks: dict[str, NotebookNode], lab: Lab) -> Path:
    """As nbgrader's submitted/STUDENT/LAB/topic.ipynb tree."""
    for student, notebook in notebooks.items():
        path = Path(folder) / "submitted" / student / lab.name / f"{lab.topic}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook, indent=1))     # nbformat would mend what is damaged on purpose
    return Path(folder) / "submitted"
