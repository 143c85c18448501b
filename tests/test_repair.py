"""Damaged submissions: what was done to the notebook, and that the student's work is found in it."""
import copy
import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_raw_cell
from nbformat import validate

from autograder.notebook import instructor_notebook, student_notebook
from autograder.repair import judged_cells, repair
from autograder.source import load_lab_source
from autograder.submission import grade_id, read_notebook

SCRIPT = '''\
# %% [markdown]
# # Doubling
# How do you double a number, and why would you?

# %% tags=["setup"]
from course.check import check, setup, speed

setup("11_doubling")

# %%
FACTOR = 2


# %%
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    return FACTOR * x
    ### END SOLUTION


# %%
check(double)

# %% [markdown] tags=["prediction"]
# *My prediction:*

# %% tags=["experiment"]
print([double(x) for x in range(5)])


# %%
def triple(x):
    """Three times x."""
    ### BEGIN SOLUTION
    return x + double(x)
    ### END SOLUTION


# %%
check(triple)

# %% tags=["experiment"]
plots = {x: triple(x) for x in (1, 2, 3)}
print(plots)


# %%
def halve(x):
    """Half of x."""
    ### BEGIN SOLUTION
    return x / 2
    ### END SOLUTION


# %%
check(halve)

# %%
speed(halve)

# %% [markdown]
# **Why** does doubling a number twice make it four times as large?

# %% [markdown] tags=["written"] points=4 name="claim"
# Because two times two is four.

# %% [markdown]
# And what is **half** of nothing?

# %% [markdown] tags=["written"] points=2 name="nothing"
# Nothing.
'''
SOLVED = {"double": "def double(x):\n    return 2 * x", "triple": "def triple(x):\n    return 3 * x", "halve": "def halve(x):\n    return x / 2",
          "claim": "2 * 2 = 4, says the student.", "nothing": "Still nothing."}
ANSWERS = {"double": 10, "triple": 15, "halve": 2.5}


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("solutions") / "11_doubling"
    folder.mkdir()
    (folder / "doubling.py").write_text(SCRIPT)
    spec = SimpleNamespace(points=lambda name: 1, speeds=[SimpleNamespace(exercise="halve", points=1)])
    return student_notebook(instructor_notebook(load_lab_source(folder), spec, "https://github.com/someone/course"))


@pytest.fixture
def solved(released):
    notebook = copy.deepcopy(released)
    for name, source in SOLVED.items():
        cell_of(notebook, name).source = source
    return notebook


def cell_of(notebook, name):
    return next(cell for cell in notebook.cells if name in (grade_id(cell), cell.get("id")))


def at(notebook, name):
    return notebook.cells.index(cell_of(notebook, name))


def kind(notebook, start, which=0):
    """The released cell whose id begins so: given-1a2b3c4d."""
    return [cell for cell in notebook.cells if cell.get("id", "").startswith(start)][which]


def strip(notebook):
    for cell in notebook.cells:
        cell.metadata, cell.id = {}, ""
    return notebook


def run(cells):
    """What the judged cells define, for a submission in which some of them fail."""
    namespace = {"setup": lambda name: None}
    for cell in cells:
        source = cell.source.replace("from course.check import check, setup, speed", "")
        try:
            exec(source, namespace)
        except Exception as error:
            namespace[f"error in {cell.name}"] = error
    return namespace


def answers(repaired):
    namespace = run(repaired.cells)
    return {name: namespace[name](5) for name in ANSWERS}


def names(notebook):
    return [grade_id(cell) or cell.id for cell in notebook.cells]


def check(notebook, released, *notes):
    """Every exercise and answer is found, every released cell is in its place, and these are the notes."""
    repaired = repair(notebook, released)
    assert answers(repaired) == ANSWERS
    assert {name: cell_of(repaired.notebook, name).source for name in SOLVED} == SOLVED
    assert [name for name in names(repaired.notebook) if name in names(released)] == names(released)
    assert repaired.notes == list(notes)
    validate(repaired.notebook)
    return repaired


# ---------------------------------------------------------------- cells lost, doubled, moved, of another type

def test_a_sound_notebook_needs_no_repair(solved, released):
    assert check(solved, released).notebook == solved


def test_a_deleted_check_is_restored(solved, released):
    del solved.cells[at(solved, "check-double")]
    check(solved, released, "check-double was missing and has been restored")


def test_the_setup_cell_is_restored(solved, released):
    del solved.cells[at(solved, "setup")]
    assert check(solved, released, "setup was missing and has been restored").cells[0].name == "setup"


def test_a_deleted_solution_is_the_blank_stub_again(solved, released):
    del solved.cells[at(solved, "double")]
    repaired = repair(solved, released)
    assert cell_of(repaired.notebook, "double") == cell_of(released, "double")
    assert repaired.notes == ["double was missing and has been restored"]


def test_several_missing_cells_are_one_note(solved, released):
    solved.cells = [cell_of(solved, name) for name in ("setup", "double", "triple", "halve", "claim", "nothing")]
    check(solved, released, "3 text cells, a given cell, check-double, a prediction cell, 2 experiment cells and 3 more "
                            "were missing and have been restored")


def test_an_empty_notebook_is_the_released_one(released):
    empty = copy.deepcopy(released)
    empty.cells = []
    assert repair(empty, released).notebook == released


def test_the_released_notebook_itself_stays_as_it_was(solved, released):
    before = copy.deepcopy(released)
    repair(strip(solved), released).notebook.cells[0].source = "changed"
    assert released == before


def test_a_doubled_check_is_kept_once(solved, released):
    solved.cells.insert(0, copy.deepcopy(cell_of(solved, "check-double")))
    repaired = repair(solved, released)
    assert names(repaired.notebook) == names(released)
    assert repaired.notes[0] == "check-double was there more than once and is kept once"


def test_of_two_copies_of_a_solution_the_last_counts(solved, released):
    first = copy.deepcopy(cell_of(solved, "double"))
    first.source = "def double(x):\n    return 0"
    solved.cells.insert(at(solved, "double"), first)
    check(solved, released, "double was there 2 times: the last one that is not blank counts")


def test_a_blank_copy_never_counts(solved, released):
    solved.cells.insert(at(solved, "double") + 1, copy.deepcopy(cell_of(released, "double")))
    check(solved, released, "double was there 2 times: the last one that is not blank counts")


def test_a_blank_copy_with_another_docstring_never_counts(solved, released):
    blank = new_code_cell('def double(x):\n    """Later."""\n    # TODO\n    raise NotImplementedError()')
    solved.cells.insert(at(solved, "check-double"), blank)
    assert answers(repair(solved, released)) == ANSWERS


def test_the_copy_that_counts_is_executed_last_wherever_the_others_are(solved, released):
    old = new_code_cell("def double(x):\n    return 0")
    solved.cells = [cell_of(solved, "check-halve"), old, *solved.cells]
    assert answers(repair(solved, released)) == ANSWERS


def test_a_solution_in_a_cell_below_the_blank_one_is_found(solved, released):
    place = at(solved, "double")
    solved.cells.insert(place + 1, new_code_cell(SOLVED["double"]))
    solved.cells[place].source = cell_of(released, "double").source
    check(solved, released, "double was there 2 times: the last one that is not blank counts")


def test_cells_are_put_in_order(solved, released):
    solved.cells.reverse()
    check(solved, released, "the cells were in another order")


@pytest.mark.parametrize("cell_type", ["markdown", "raw"])
def test_a_solution_that_became_text_is_code_again(solved, released, cell_type):
    cell_of(solved, "double").cell_type = cell_type
    check(solved, released, "double had another type and is a code cell again")


def test_a_solution_that_became_text_and_lost_its_ids_is_found(solved, released):
    solved.cells[at(solved, "double")] = new_raw_cell(SOLVED["double"])
    check(solved, released, "double had another type and is a code cell again", "a cell had lost nbgrader's metadata")


def test_an_answer_that_became_code_is_text_again(solved, released):
    cell_of(solved, "claim").cell_type = "code"
    check(solved, released, "claim had another type and is a text cell again")


def test_an_empty_solution_is_the_stub_again(solved, released):
    cell_of(solved, "double").source = " \n"
    assert cell_of(repair(solved, released).notebook, "double").source == cell_of(released, "double").source


def test_another_labs_notebook_is_named_as_such(released):
    other = copy.deepcopy(released)
    other.cells = [new_code_cell("setup('12_other')"), new_code_cell("def other(x):\n    return 1")]
    assert repair(other, released).notes == ["none of this lab's exercises is in it: is it another lab's notebook?"]


# ---------------------------------------------------------------- locked cells that were edited

def test_an_edited_check_is_as_released_again(solved, released):
    cell_of(solved, "check-double").source = "check = lambda f: None\ncheck(double)"
    repaired = check(solved, released, "check-double had been changed and is as released again")
    assert cell_of(repaired.notebook, "check-double") == cell_of(released, "check-double")


def test_forged_points_are_as_released_again(solved, released):
    cell_of(solved, "check-double").metadata.nbgrader.points = 100
    assert repair(solved, released).notebook == repair(solved, released).notebook
    assert cell_of(repair(solved, released).notebook, "check-double").metadata.nbgrader.points == 1


def test_an_import_written_into_the_setup_cell_is_kept_in_a_cell_behind_it(solved, released):
    cell_of(solved, "setup").source = "import math\n" + cell_of(solved, "setup").source
    repaired = check(solved, released, "setup had been changed and is as released again")
    assert [cell.source for cell in repaired.cells][1] == "import math"


def test_what_the_lab_gives_cannot_be_replaced_where_it_stands(solved, released):
    kind(solved, "given").source = "FACTOR = 3\nMINE = 4"
    namespace = run(repair(solved, released).cells)
    assert namespace["FACTOR"] == 2 and namespace["MINE"] == 4


def test_a_helper_in_a_check_cell_is_executed_before_it_is_needed(solved, released):
    cell_of(solved, "check-double").source = "def helper(x):\n    return 3 * x\n\ncheck(double)"
    cell_of(solved, "triple").source = "def triple(x):\n    return helper(x)"
    assert answers(repair(solved, released)) == ANSWERS


def test_an_answer_written_into_the_question_is_found(solved, released):
    question = solved.cells[at(solved, "claim") - 1]
    question.source += "\n\n2 * 2 = 4, says the student."
    del solved.cells[at(solved, "claim")]
    assert cell_of(repair(solved, released).notebook, "claim").source == SOLVED["claim"]


# ---------------------------------------------------------------- the student's own cells

def test_own_cells_stay_behind_the_cell_that_they_followed(solved, released):
    solved.cells.insert(at(solved, "check-triple") + 1, new_code_cell("MINE = 1", id="mine"))
    repaired = check(solved, released)
    assert names(repaired.notebook)[at(repaired.notebook, "check-triple") + 1] == "mine"


def test_own_cells_at_the_top_stay_there(solved, released):
    solved.cells.insert(0, new_code_cell("MINE = 1", id="mine"))
    assert check(solved, released).cells[0].source == "MINE = 1"


def test_a_split_cells_helper_is_executed_before_its_solution(solved, released):
    helper = copy.deepcopy(cell_of(solved, "double"))
    helper.source = "TWO = 2"
    cell_of(solved, "double").source = "def double(x, two=TWO):\n    return two * x"
    solved.cells.insert(at(solved, "double"), helper)
    repaired = repair(solved, released)
    assert answers(repaired) == ANSWERS and repaired.notes == []


def test_two_functions_in_one_cell_are_both_solved(solved, released):
    cell_of(solved, "double").source += "\n\n\n" + SOLVED["triple"]
    del solved.cells[at(solved, "triple")]
    repaired = repair(solved, released)
    assert answers(repaired) == ANSWERS
    assert repaired.notes == ["triple was written in the cell of double"]


def test_everything_in_one_cell_is_solved(solved, released):
    solved.cells = [new_code_cell("\n\n".join(source for name, source in SOLVED.items() if name in ANSWERS))]
    repaired = repair(solved, released)
    assert answers(repaired) == ANSWERS and "triple and halve were written in the cell of double" in repaired.notes


def test_a_solution_that_is_no_def_is_found(solved, released):
    cell_of(solved, "double").source = "double = lambda x: 2 * x"
    assert answers(repair(solved, released)) == ANSWERS


def test_a_solution_written_into_an_experiment_is_found(solved, released):
    kind(solved, "experiment").source = SOLVED["double"]
    del solved.cells[at(solved, "double")]
    assert answers(repair(solved, released)) == ANSWERS


def test_a_solution_with_a_syntax_error_is_recognised_without_its_ids(solved, released):
    broken = "def double(x):\n    return 2 * x)"
    solved.cells[at(solved, "double")] = new_code_cell(broken)
    assert cell_of(repair(solved, released).notebook, "double").source == broken


def test_an_answer_without_ids_is_found_behind_its_question(solved, released):
    solved.cells[at(solved, "claim")] = new_markdown_cell(SOLVED["claim"])
    check(solved, released, "the answer claim was taken from a cell next to its place")


def test_an_answer_in_a_cell_below_the_blank_one_is_found(solved, released):
    place = at(solved, "claim")
    solved.cells[place].source = cell_of(released, "claim").source
    solved.cells.insert(place + 1, new_markdown_cell(SOLVED["claim"]))
    check(solved, released, "the answer claim was taken from a cell next to its place")


def test_a_picture_pasted_into_such_an_answer_comes_along(solved, released):
    picture = {"sketch.png": {"image/png": "iVBORw0K"}}
    solved.cells[at(solved, "claim")] = new_markdown_cell(SOLVED["claim"], attachments=picture)
    assert cell_of(repair(solved, released).notebook, "claim").attachments == picture


def test_both_copies_of_an_answer_are_kept_for_the_reader(solved, released):
    first = copy.deepcopy(cell_of(solved, "claim"))
    first.source = "An earlier thought."
    solved.cells.insert(at(solved, "claim"), first)
    repaired = check(solved, released, "the answer claim was there more than once: the last one counts")
    assert "An earlier thought." in [cell.source for cell in repaired.notebook.cells]


# ---------------------------------------------------------------- metadata

def test_everything_is_found_without_any_metadata(solved, released):
    check(strip(solved), released, "the answer claim was taken from a cell next to its place",
          "the answer nothing was taken from a cell next to its place", "12 cells had lost nbgrader's metadata")


def test_colabs_rewriting_is_undone(solved, released):
    for i, cell in enumerate(solved.cells):
        cell.metadata = {"id": f"k{i}Zq_3xY", "outputId": f"{i}"} | ({"colab": {"base_uri": "https://x"}} if i % 2 else {})
        del cell["id"]
    solved.metadata = {"colab": {"provenance": []}, "kernelspec": {"name": "julia", "display_name": "Julia"}}
    repaired = repair(solved, released)
    assert answers(repaired) == ANSWERS and repaired.notebook.metadata == released.metadata


def test_an_id_that_colab_moved_into_the_metadata_is_recognised(solved, released):
    for cell in solved.cells:
        cell.metadata = {"id": cell.pop("id")}
    check(solved, released, "14 cells had lost nbgrader's metadata")


def test_vs_codes_rewriting_is_undone(solved, released):
    for cell in solved.cells:
        cell.metadata = {**cell.metadata, "vscode": {"languageId": "python"}}
    assert check(solved, released).notebook.cells[0].metadata == released.cells[0].metadata


def test_partly_lost_metadata_is_restored(solved, released):
    cell_of(solved, "check-double").metadata.nbgrader = {"locked": False}
    repaired = check(solved, released, "a cell had lost nbgrader's metadata")
    assert cell_of(repaired.notebook, "check-double") == cell_of(released, "check-double")


@pytest.mark.parametrize("nbgrader", [None, "text", [], {"grade_id": None}, {"grade_id": ["a"]}, {"grade_id": 3}])
def test_nonsense_in_the_metadata_is_survived(solved, released, nbgrader):
    cell_of(solved, "double").metadata = {"nbgrader": nbgrader, "tags": "setup", "id": {}}
    assert answers(repair(solved, released)) == ANSWERS


def test_ids_that_occur_twice_are_made_different(solved, released):
    solved.cells += [new_code_cell("A = 1", id="mine"), new_code_cell("B = 1", id="mine"), new_code_cell("C = 1")]
    del solved.cells[-1]["id"]
    ids = [cell.id for cell in repair(solved, released).notebook.cells]
    assert len(set(ids)) == len(ids)


# ---------------------------------------------------------------- what grading executes

def test_checks_speeds_and_experiments_are_not_executed(solved, released):
    judged = judged_cells(solved, released)
    assert [cell.name for cell in judged if cell.name] == ["setup", grade_id(kind(released, "given")), "double", "triple", "halve"]
    assert len(judged) == 5


def test_an_edited_experiment_without_ids_is_not_executed(solved, released):
    kind(solved, "experiment").source = "print([double(x) for x in range(50)])"
    assert len(judged_cells(strip(solved), released)) == 5


def test_an_own_cell_tagged_experiment_is_not_executed(solved, released):
    solved.cells.append(new_code_cell("while True: pass", metadata={"tags": ["experiment"]}))
    assert len(judged_cells(solved, released)) == 5


def test_an_import_in_an_experiment_is_there_for_the_cells_after_it(solved, released):
    kind(solved, "experiment").source += "\nimport math\nMORE = double(3)"
    assert "import math" in [cell.source for cell in judged_cells(solved, released)]


def test_the_setup_cells_magic_is_not_executed(solved, released):
    assert "pass  # %pip install" in judged_cells(solved, released)[0].source


def test_figures_stay_for_whoever_reads_the_answers(solved, released):
    figure = {"output_type": "display_data", "data": {"image/png": "iVBORw0K"}, "metadata": {}}
    kind(solved, "experiment").outputs = [figure]
    assert kind(repair(solved, released).notebook, "experiment").outputs == [figure]


# ---------------------------------------------------------------- any damage at all

@st.composite
def damages(draw, size):
    """Cells to keep, in an order and perhaps several times; what each loses or becomes."""
    places = draw(st.lists(st.integers(0, size - 1), max_size=2 * size))
    return [(p, draw(st.sampled_from(["code", "markdown", "raw", "", "", ""])), draw(st.sampled_from(["metadata", "ids", "all", "", ""]))) for p in places]


def damaged(solved, damage, extra=()):
    cells = []
    for place, cell_type, loss in damage:
        cell = copy.deepcopy([*solved.cells, *extra][place])
        cell.cell_type = cell_type or cell.cell_type
        cell.metadata = {} if loss in ("metadata", "all") else cell.metadata
        if loss in ("ids", "all"):
            cell.pop("id", None)
        cells.append(cell)
    return type(solved)({**solved, "cells": cells})


@settings(max_examples=100, deadline=None, database=None)
@given(data=st.data())
def test_a_solution_is_found_as_long_as_one_copy_is_left(released, data):
    solved = copy.deepcopy(released)
    for name, source in SOLVED.items():
        cell_of(solved, name).source = source
    damage = data.draw(damages(len(solved.cells)))
    repaired = repair(damaged(solved, damage), released)
    namespace, left = run(repaired.cells), {grade_id(solved.cells[place]) for place, *_ in damage}
    assert {name: namespace[name](5) for name in ANSWERS if name in left} == {name: ANSWERS[name] for name in ANSWERS if name in left}
    assert [name for name in names(repaired.notebook) if name in names(released)] == names(released)


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(sorted(SOLVED.values())),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=6)
FIELDS = {"cell_type": JSON | st.sampled_from(["code", "markdown"]), "source": JSON | st.text(alphabet="def(x):\n %!'\"?\\", max_size=30), "metadata": JSON |
          st.fixed_dictionaries({}, optional={"nbgrader": JSON | st.fixed_dictionaries({"grade_id": JSON | st.sampled_from(["double", "setup"])}), "tags": JSON, "id": JSON}),
          "id": JSON | st.sampled_from(["double", "setup"]), "outputs": JSON, "attachments": JSON}


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cells=st.lists(JSON | st.fixed_dictionaries({}, optional=FIELDS), max_size=4))
def test_whatever_was_read_is_repaired(released, tmp_path, cells):
    path = tmp_path / "lab.ipynb"
    path.write_text(json.dumps({"cells": cells}))
    repaired = repair(read_notebook(path), released)
    validate(repaired.notebook)
    assert repair(repaired.notebook, released).notebook == repaired.notebook


EXTRA = ["HELPER = 1", "def double(x):\n    return 0", SOLVED["double"] + "\n\n" + SOLVED["halve"], "def halve(x):\n    raise NotImplementedError",
         "def triple(x):\n    return 1\n\ndef halve(x):\n    raise NotImplementedError", "double = triple", "def double(x:", "A thought.",
         "%%time\ndef triple(x):\n    return 4", "", "print([double(x) for x in range(7)])", "# triple is written in the cell of double."]


@settings(max_examples=80, deadline=None, database=None)
@given(data=st.data())
def test_repairing_twice_changes_nothing_more(released, data):
    solved = copy.deepcopy(released)
    for name, source in SOLVED.items():
        cell_of(solved, name).source = source
    blank = copy.deepcopy(released.cells)
    extra = blank + [new_code_cell(source, id=f"extra{i % 5}") for i, source in enumerate(EXTRA)]
    for cell, source in zip(copy.deepcopy(released.cells), EXTRA * 2):
        extra.append(type(cell)({**cell, "source": source}))  # in a released cell's place
    damage = data.draw(damages(len(solved.cells) + len(extra)))
    once = repair(damaged(solved, damage, extra), released)
    twice = repair(once.notebook, released)
    assert twice.notebook == once.notebook and twice.cells == once.cells
    validate(once.notebook)
