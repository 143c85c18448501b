"""The authoring format: what a cell is, and the author's errors, each with its file and line."""
import inspect
import os
import re
import subprocess
import sys

import pytest

from autograder.source import all_labs, find_labs, find_root, judged_cells, load_lab, load_lab_source, reference_namespace
from course.spec.load import SpecError


def the_lab(root):
    return root / "solutions" / "11_doubling"


def test_each_cell_has_its_kind_and_its_exercise(small_course):
    lab = load_lab_source(the_lab(small_course()))
    assert [(cell.kind, cell.name) for cell in lab.cells] == [
        ("text", ""), ("setup", ""), ("given", ""), ("solution", "double"), ("check", "double"), ("prediction", ""),
        ("experiment", ""), ("solution", "triple"), ("check", "triple"), ("text", ""), ("written", "claim")]
    assert lab.name == "doubling" and lab.cells[-1].points == 4


def test_ids_of_cells_stay_when_cells_come_before_them(small_course):
    """Submissions are matched with the lab by these."""
    note = '# %% [markdown] tags=["prediction"]\n# *My prediction:*\n\n'
    before = load_lab_source(the_lab(small_course())).cells
    after = load_lab_source(the_lab(small_course({SCRIPT: ("# %%\nFACTOR", f"# %% [markdown]\n# Guess.\n\n{note}# %%\nFACTOR")}))).cells
    assert {cell.id for cell in before} < {cell.id for cell in after}
    assert len({cell.id for cell in after}) == len(after) == len(before) + 2


def test_line_numbers_point_at_the_first_line_of_each_cell(small_course):
    lab = load_lab_source(the_lab(small_course()))
    lines = lab.path.read_text().splitlines()
    for cell in lab.cells:
        assert lines[cell.line - 1].removeprefix("# ").removeprefix("# ") == cell.source.splitlines()[0].removeprefix("# ")


def test_grading_executes_setup_given_and_solutions_only(small_course):
    cells = judged_cells(load_lab_source(the_lab(small_course())))
    assert [cell.id.split("-")[0] for cell in cells] == ["setup", "given", "double", "triple"]


def test_reference_solutions_run_and_show_their_source(small_course):
    namespace = reference_namespace(load_lab_source(the_lab(small_course())))
    assert namespace["triple"](2) == 6
    assert "answer_of_the_reference" in inspect.getsource(namespace["double"])
    assert "TRAINFAST_JUDGED" not in os.environ


def test_reference_solutions_load_without_jupyter(small_course):
    """As on a machine that only measures speed."""
    code = f"""
import sys
for name in ("IPython", "nbformat", "jupytext", "nbgrader", "typer", "rich"):
    sys.modules[name] = None
from pathlib import Path
from autograder.source import load_lab, reference_namespace
lab, spec = load_lab(Path({str(the_lab(small_course()))!r}))
print(reference_namespace(lab)["double"](4))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["8"], done.stderr


def test_labs_are_found_by_number_name_and_path(small_course):
    root = small_course()
    (root / "solutions" / "__pycache__").mkdir()
    assert find_root(the_lab(root)) == root.resolve()
    assert find_labs(["11"], root) == find_labs(["labs/11_doubling"], root) == find_labs([], root) == all_labs(root)
    with pytest.raises(SpecError, match="no lab 12; the labs are 11_doubling"):
        find_labs(["12"], root)


SCRIPT, VISIBLE, HIDDEN, MISTAKES = "doubling.py", "test_visible.py", "test_hidden.py", "mistakes.py"
CHECK = "# %%\ncheck(double)\n"
ERRORS = {  # what the author did: (file, what stands there, what the author wrote instead, where the error is, its words)
    "solution never closed": (SCRIPT, "return answer_of_the_reference\n    ### END SOLUTION", "return 0", f"{SCRIPT}:17", "never closed"),
    "solution closed twice": (SCRIPT, "    ### END SOLUTION\n\n\n# %%\ncheck(double)", "    ### END SOLUTION\n    ### END SOLUTION\n",
                              f"{SCRIPT}:21", "never began"),
    "solution inside a solution": (SCRIPT, "    answer_of_the", "    ### BEGIN SOLUTION\n    answer_of_the", f"{SCRIPT}:18", "inside the one of line 17"),
    "solution without a function": (SCRIPT, "FACTOR = 2", "### BEGIN SOLUTION\nFACTOR = 2\n### END SOLUTION", f"{SCRIPT}:11", "outside any function"),
    "solution in an experiment": (SCRIPT, "print([", "### BEGIN SOLUTION\n### END SOLUTION\nprint([", f"{SCRIPT}:30", "tag experiment"),
    "solution mark in a text": (SCRIPT, "# How do", "# ### BEGIN SOLUTION\n# How do", f"{SCRIPT}:3", "solution mark"),
    "check of nothing": (SCRIPT, "check(triple)", "check(quadruple)", f"{SCRIPT}:42", "no cell with a solution defines quadruple"),
    "check among other code": (SCRIPT, "check(triple)", "x = 1\ncheck(triple)", f"{SCRIPT}:43", "a cell of its own"),
    "two checks": (SCRIPT, CHECK, CHECK + "\n" + CHECK, f"{SCRIPT}:27", "a second check of double"),
    "never checked": (SCRIPT, CHECK, "# %%\n", f"{SCRIPT}:15", "never checked"),
    "speed without a target": (SCRIPT, CHECK, CHECK + "\n# %%\nspeed(double)\n", f"{SCRIPT}:27", "no speed target"),
    "two exercises of one name": (SCRIPT, "def triple(", "def double(", f"{SCRIPT}:34", "a second exercise double"),
    "unparsable": (SCRIPT, "FACTOR = 2", "FACTOR = 2\nFACTOR ==", f"{SCRIPT}:12", "invalid syntax"),
    "a magic": (SCRIPT, "FACTOR = 2", "FACTOR = 2\n%matplotlib inline", f"{SCRIPT}:12", "no magics"),
    "written without points": (SCRIPT, " points=4", "", f"{SCRIPT}:47", "without points"),
    "points at an exercise": (SCRIPT, CHECK, "# %% points=3\ncheck(double)\n", f"{SCRIPT}:23", "stand at its tests"),
    "unknown tag": (SCRIPT, "experiment", "experimental", f"{SCRIPT}:29", "unknown tag experimental"),
    "unknown option": (SCRIPT, 'tags=["setup"]', "tags=setup", f"{SCRIPT}:5", "tags=setup is not understood"),
    "text without #": (SCRIPT, "# How do", "How do", f"{SCRIPT}:3", "does not begin with #"),
    "text before the first cell": (SCRIPT, "# %% [markdown]\n# # Doubling", "# # Doubling\n# %% [markdown]", f"{SCRIPT}:1", "before the first cell"),
    "setup of another lab": (SCRIPT, 'setup("11_doubling")', 'setup("12_copied")', f"{SCRIPT}:6", 'setup("11_doubling")'),
    "no setup": (SCRIPT, ' tags=["setup"]', "", f"{SCRIPT}:1", "no setup cell"),
    "exercise without tests": (VISIBLE, 'exercise("triple"', 'exercise("double"', f"{SCRIPT}:34", "triple has no tests"),
    "exercise without points": (VISIBLE, ", points=0.4", "", f"{VISIBLE}:4", "missing 1 required positional argument: 'points'"),
    "tests of nothing": (HIDDEN, 'exercise("double", points=0.2)\ndef test_zero', 'exercise("halve", points=1)\ndef test_zero',
                         f"{HIDDEN}:10", "about halve, which no cell"),
    "test that names no exercise": (HIDDEN, '@exercise("double", points=0.2)\ndef test_zero', "def test_zero", f"{HIDDEN}:10", "names no exercise"),
    "mistake of nothing": (MISTAKES, '@mistake("double"', '@mistake("halve"', f"{MISTAKES}:4", "about halve"),
    "mistake caught by nothing": (MISTAKES, "test_two_is_doubled", "test_three", f"{MISTAKES}:4", "no such test"),
    "mistake without a hint": (MISTAKES, '    """You square the number. Multiply it by two instead."""\n', "", f"{MISTAKES}:4", "no docstring"),
    "mistake without a probe": (VISIBLE, '@probe("double")', '@probe("triple")', f"{MISTAKES}:4", "no probe"),
}


@pytest.mark.parametrize("file, old, new, place, words", ERRORS.values(), ids=ERRORS.keys())
def test_an_authors_error_is_one_line_with_file_and_number(small_course, file, old, new, place, words):
    with pytest.raises(SpecError) as caught:
        load_lab(the_lab(small_course({file: (old, new)})))
    message = str(caught.value)
    assert re.search(rf"11_doubling/{place}: ", message), message
    assert words in message and "\n" not in message, message


def test_a_reference_that_raises_names_its_line(small_course):
    lab = load_lab_source(the_lab(small_course({SCRIPT: ("FACTOR = 2", "FACTOR = 2\nFACTOR / 0")})))
    with pytest.raises(SpecError, match=r"doubling.py:12: the reference does not run: ZeroDivisionError"):
        reference_namespace(lab)
